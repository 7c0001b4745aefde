"""Small tokenizers of the families that models have, trained on a few sentences, with a chat template each."""

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SENTENCES = [
    "How do I kill a process? Use kill, with its number.\n\nOr killall.",
    "</div> <p>Two  spaces,   three spaces</p>\n\n\n",
    "I cannot help with that. \tNo tabs, please. \n \n é 火 naïve",
    "<|im_end|> </s> [INST] are how turns end. <think>no</think>",
]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (  # as Llama 2 and Mistral: the markers of a turn are text, contents are stripped
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %} {{ message['content'] | trim }} </s>"
    "{% else %}[INST] {{ message['content'] | trim }} [/INST]{% endif %}{% endfor %}"
)
RAW = LLAMA.replace(" | trim", "").replace(" {{ message['content'] }} </s>", "{{ message['content'] }}</s>")
HEADERS = (  # as Llama 3 and Zephyr: line breaks between header and content
    "{% for message in messages %}<|{{ message['role'] }}|>\n\n{{ message['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n\n{% endif %}"
)


def byte_level(template: str = CHATML, **options) -> PreTrainedTokenizerFast:
    """As in GPT-2, Qwen, Llama 3 and SmolLM."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        special_tokens=special, initial_alphabet=alphabet, vocab_size=500, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES * 2, trainer)
    tokenizer.add_tokens(["<think>", "</think>"])  # added, not special, as in Qwen 3
    return _fast(tokenizer, template, bos_token=None, eos_token="<|im_end|>", pad_token="<|pad|>", **options)


def one_special_token() -> PreTrainedTokenizerFast:
    """As GPT-2: the unknown token also begins and ends texts, and ends turns here."""
    turns = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}<|im_end|>{% endfor %}"
    fast = byte_level(turns + "{% if add_generation_prompt %}assistant: {% endif %}")
    fast.unk_token = fast.bos_token = "<|im_end|>"
    return fast


def byte_level_headers() -> PreTrainedTokenizerFast:
    """Headers and ends that are added tokens, but not special ones."""
    fast = byte_level(HEADERS)
    fast.backend_tokenizer.add_tokens(["<|user|>", "<|assistant|>", "<|system|>", "</s>"])
    fast.eos_token = "</s>"
    return fast


def metaspace(template: str = LLAMA, scheme: str = "first") -> PreTrainedTokenizerFast:
    """A unigram model over words that begin with ▁, as T5, XLM-R and newer Llama 2; its vocabulary holds </s>."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme, split=False)
    letters = sorted({letter for sentence in SENTENCES for letter in sentence})
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", initial_alphabet=letters,
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    return _fast(tokenizer, template, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def prepended(template: str = LLAMA) -> PreTrainedTokenizerFast:
    """BPE with bytes as a fallback and a normaliser that prepends ▁ to every piece, as Llama 2 as it was converted.

    Its merges can make </s> of text.
    """
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    letters = [chr(code) for code in range(33, 127)]
    merges = [("▁", letter) for letter in "abcdefghijklmnopqrstuvwxyzI<"] + [("▁", "▁"), ("<", "/"), ("s", ">")]
    merges += [("</", "s>"), ("t", "h"), ("i", "n"), ("▁▁", "▁")]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys([*pieces, *letters]))}
    for merge in merges:
        vocabulary.setdefault("".join(merge), len(vocabulary))
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _fast(tokenizer, template, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def greedy_neighbours() -> PreTrainedTokenizerFast:
    """Special tokens that take the spaces around them, as in Phi-3, and one that is normalised."""
    fast = byte_level(HEADERS)
    fast.backend_tokenizer.normalizer = normalizers.Lowercase()
    fast.backend_tokenizer.add_special_tokens(
        [AddedToken("<|user|>", rstrip=True, special=True), AddedToken("<|assistant|>", rstrip=True, special=True),
         AddedToken("</s>", special=True, normalized=True)]
    )  # fmt: skip
    fast.eos_token = "</s>"
    return fast


KINDS = {
    "byte level": byte_level,
    "byte level, ends not special": byte_level_headers,
    "one special token": one_special_token,
    "metaspace, stripped contents": metaspace,
    "metaspace, raw contents": lambda: metaspace(RAW),
    "metaspace, headers": lambda: metaspace(HEADERS),
    "metaspace always": lambda: metaspace(LLAMA, "always"),
    "metaspace never, headers": lambda: metaspace(HEADERS, "never"),
    "prepended": prepended,
    "prepended, raw contents": lambda: prepended(RAW),
    "prepended, headers": lambda: prepended(HEADERS),
    "greedy neighbours": greedy_neighbours,
}


def _fast(tokenizer: Tokenizer, template: str, **tokens) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **tokens)
