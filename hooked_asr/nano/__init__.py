"""whisper-nano, the bundled model organism, from its words to its card.

- What is said: `lexicon`, `templates`, `phrases`, `pairs`, `grammar`.
- Who says it, and what else is heard: `voices`, `espeak`, `noise`.
- The corpus: `recipe`, `clips`, `corpus`.
- The training: `tokenizer`, `batches`, `training`, `record`.
- What came of it: `evaluation`, `card`, and `bundle`, the clips that come with the package.
"""
