"""What a run reads beside its model and prompts, and what it says of it at the start."""
