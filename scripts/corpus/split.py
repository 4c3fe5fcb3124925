"""Which text is for training and which for validation: a pure function of the documents."""
import re

BLOCK_BYTES = 8192
LINE_ENDS = [re.compile(pattern) for pattern in (rb"\r?\n\s*\n", rb"\n", rb" ")]


def block_bytes(total, fraction):
    """8 KiB, or less where that would give fewer than about eight blocks of validation."""
    return max(256, min(BLOCK_BYTES, int(total * fraction / 8)))


def cut_blocks(text, size):
    """Cuts after a blank line at the earliest `size` bytes on; where a long stretch has none, after
    a line, a space, or any character."""
    start = 0
    while start < len(text):
        end = min(start + 2 * size, len(text))
        if end < len(text):
            ends = (pattern.search(text, start + size - 1, end) for pattern in LINE_ENDS)
            found = next((match for match in ends if match), None)
            end = found.end() if found else end
            while not found and end < len(text) and text[end] & 0xC0 == 0x80:
                end += 1  # not inside a UTF-8 character
        else:
            end = len(text) if len(text) - start <= size else end
        yield text[start:end]
        start = end


class Chooser:
    """Spreads validation evenly: a block is chosen when the share so far is behind the fraction;
    the first one after half a period."""

    def __init__(self, fraction):
        self.fraction, self.all, self.chosen = fraction, 0, 0

    def validation(self, block):
        self.all += len(block)
        chosen = self.chosen + len(block) / 2 <= self.fraction * self.all
        self.chosen += len(block) * chosen
        return chosen


def pieces(documents, size, fraction):
    """(is it validation, bytes) for each stretch of adjacent blocks of one document on one side.
    size None: documents are not cut."""
    chooser = Chooser(fraction)
    for document in documents:
        side, blocks = None, []
        for block in cut_blocks(document, size) if size else [document]:
            chosen = chooser.validation(block)
            if blocks and chosen != side:
                yield side, b"".join(blocks)
                blocks = []
            side = chosen
            blocks.append(block)
        if blocks:
            yield side, b"".join(blocks)
