"""Block-sparse attention (InfLLM-V2): the written reference, differentiable forms, and the choice of one."""
