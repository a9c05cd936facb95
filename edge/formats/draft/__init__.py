"""The draft bundle: a draft's weights as they run, tied to the model that it guesses for. See `manifest`."""
