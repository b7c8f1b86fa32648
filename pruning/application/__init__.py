"""How a selection is applied: masks, surgery, and penalties that prepare it."""
