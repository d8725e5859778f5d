"""One page of what steps kept, changed and set aside."""
