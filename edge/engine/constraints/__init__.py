"""What an answer must look like: grammars, what they allow token by token, and thinking before them."""
