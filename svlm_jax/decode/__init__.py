"""From hidden states to tokens: sampling, the decode loop, generation, detokenization."""
