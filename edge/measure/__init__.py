"""What a model costs and how good it is: profiles, perplexity, divergence, alignment, facts, diagnosis."""
