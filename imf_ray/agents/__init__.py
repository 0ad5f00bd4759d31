"""Policies from images and states to action chunks: iMF, flow matching and DDPM."""
