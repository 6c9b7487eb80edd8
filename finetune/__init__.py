"""What a pretrained model knows, measured on tasks with small data."""
