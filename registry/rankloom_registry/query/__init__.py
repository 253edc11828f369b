"""What a user asks in words of their own, and how little that can do."""
