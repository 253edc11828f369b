"""What the pages of evaluations show: how they are read, and their figures."""
