"""Tools that a model may call: in its prompts, in the grammars of its answers, and in what it says."""
