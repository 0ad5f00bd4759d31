"""Simulated tasks: gymnasium envs on MuJoCo, scripted experts, and rendering without a display."""
