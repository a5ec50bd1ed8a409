"""Rewards as differentiable functions of pixels, for algorithms that follow the gradient of the reward."""
