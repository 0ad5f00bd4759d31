"""Simulated bimanual tasks: MuJoCo environments, their scripted experts, and headless rendering."""
