"""What happens to a registry, and how its tables follow from that."""
