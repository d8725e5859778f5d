"""Commands, run as `python -m launch.NAME`: parse, print the resolved config, call one library function."""
