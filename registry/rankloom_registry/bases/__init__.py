"""Which base model is it? Known by its content."""
