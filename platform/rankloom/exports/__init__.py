"""What a promoted adapter is written as."""
