"""What the pages of adapters have in common: how they are read, listed, chosen, compared and changed."""
