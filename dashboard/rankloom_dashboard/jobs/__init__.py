"""Long work that the dashboard starts: each a program of its own, so that the server stays small and quick."""
