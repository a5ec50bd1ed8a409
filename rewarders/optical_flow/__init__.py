"""Dense optical flow between two frames: without a model, and by RAFT."""
