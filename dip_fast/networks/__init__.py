"""Untrained networks that draw one picture from a fixed random input."""
