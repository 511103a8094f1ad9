"""Load a compressed sentence encoder and compare three sentences."""

import sys

import zoopress

folder = sys.argv[1] if len(sys.argv) > 1 else "out/minilm/fast/artifact"
sentences = [
    "A zoo keeps many animals.",
    "There are lots of creatures in the menagerie.",
    "The train leaves at noon.",
]
model = zoopress.load(folder)
embeddings = model.encode(sentences)
print(f"{folder}: embeddings of shape {tuple(embeddings.shape)}")
for i, first in enumerate(sentences):
    for j in range(i + 1, len(sentences)):
        similarity = float(embeddings[i] @ embeddings[j])
        print(f"{similarity:6.3f}  {first}  |  {sentences[j]}")
