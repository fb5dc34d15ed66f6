"""What a written text must be before it may become a feature."""
