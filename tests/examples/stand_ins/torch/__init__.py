"""The part of torch that the examples' commands call: its launcher, with the same options and variables."""
