// CLIP's byte pairs, as groupvit.text.tokenizer reads them. Only mojibake and HTML entities are left unrepaired: nobody
// types those.

const PIECES = /<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+/gu;
const START = 49406;
const END = 49407;

// Each byte is written as a printable character; those that are not printable follow from 256 on.
const BYTES = (() => {
  const printable = (b) => (b > 32 && b < 127) || (b > 160 && b !== 173);
  let next = 256;
  return Array.from({ length: 256 }, (_, b) => String.fromCharCode(printable(b) ? b : next++));
})();

export function clean(text) {
  return text
    .replace(/[\u2018\u2019\u201a\u201b\u02bc]/g, "'")
    .replace(/[\u201c\u201d\u201e\u201f]/g, '"')
    .replace(/[\uff01-\uff5e]/g, (wide) => String.fromCharCode(wide.charCodeAt(0) - 0xfee0))
    .normalize("NFC")
    .replace(/\s+/g, " ")
    .trim()
    .toLowerCase();
}

/** Return a function from texts to rows of token ids, cut to `length`, and padded with zeros to the longest row. */
export function tokenizer({ vocab, merges }, length) {
  const ranks = new Map(merges.map((pair, rank) => [typeof pair === "string" ? pair : pair.join(" "), rank]));

  function pairs(piece) {
    const parts = [...new TextEncoder().encode(piece)].map((byte) => BYTES[byte]);
    parts[parts.length - 1] += "</w>";
    for (;;) {
      let best = Infinity;
      let at = -1;
      for (let i = 0; i + 1 < parts.length; i++) {
        const rank = ranks.get(`${parts[i]} ${parts[i + 1]}`) ?? Infinity;
        if (rank < best) [best, at] = [rank, i];
      }
      if (at < 0) return parts;
      parts.splice(at, 2, parts[at] + parts[at + 1]);
    }
  }

  const special = { "<|startoftext|>": START, "<|endoftext|>": END };
  const ids = (piece) => (Object.hasOwn(special, piece) ? [special[piece]] : pairs(piece).map((part) => vocab[part]));
  return (texts) => {
    const rows = texts.map((text) => {
      const inner = (clean(text).match(PIECES) ?? []).flatMap(ids);
      return [START, ...inner.slice(0, length - 2), END];
    });
    const longest = Math.max(...rows.map((row) => row.length));
    return rows.map((row) => [...row, ...Array(longest - row.length).fill(0)]);
  };
}
