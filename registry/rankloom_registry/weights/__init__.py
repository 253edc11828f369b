"""What an adapter's weights say, without torch."""
