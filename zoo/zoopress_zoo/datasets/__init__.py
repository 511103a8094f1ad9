"""Where labelled samples come from, a module a scheme of `data.dataset`."""
