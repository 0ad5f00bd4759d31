"""Training data: episode files, their checks and index, the sample order, Ray Data loading."""
