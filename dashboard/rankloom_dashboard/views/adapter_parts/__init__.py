"""The parts of an adapter's page."""
