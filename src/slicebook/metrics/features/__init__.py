"""Features by which slices are compared: texture statistics and ImageNet features."""
