"""Analyses of weights, one file each."""
