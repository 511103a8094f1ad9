"""Universal entropy coding: lossless, deterministic, and decodable from `docs/zpz.md` alone."""
