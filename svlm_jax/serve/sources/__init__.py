"""What can be watched: listed sources, generated games, addresses, and frames that clients push."""
