"""From raw videos to training windows: words with times, repaired, edited, cut. A step reads and writes one video a line."""
