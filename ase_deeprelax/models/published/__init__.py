"""Networks exactly as published, for comparison and for their checkpoints."""
