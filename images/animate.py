"""Draw the moving pictures of the READMEs from the notebook's own functions.

    python images/animate.py [NAME]

images/stream.gif, and images/zh/stream.gif with Chinese words, show the residual stream of a written Llama that is told
7: barcodes fill in, part by part. images/birth.gif shows a previous-token head and an induction head appear while the
tutorial's two layers are trained.
"""
import argparse
import io
from functools import partial

import torch
from canvas import font
from cells import ROOT, load_tutorial, new_tutorial
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

WIDTH = 900                                             # pixels
HOLD = 12                                               # frames that a finished state stays
MILLISECONDS = 110                                      # of a frame
LEFT = {"who": 7, "before": 34, "next": 62}             # where a register's first digit is drawn


def rasterized(figure):
    """`figure` as an image WIDTH pixels wide."""
    file = io.BytesIO()
    figure.savefig(file, dpi=WIDTH / figure.get_figwidth(), facecolor="white")
    return Image.open(file).convert("RGB")


def stream_frame(tutorial, title, names, rows, bars, arrow=None):
    """One frame of stream.gif: `names` of the registers, `bars` of (digits [17], left edge, row, register, opacity).

    `arrow` goes from the row where an answer was found, in who, to the last of the `rows`, whose own answer it strikes;
    what matched is framed.
    """
    figure = Figure(figsize=(9, 4.9))
    axes = figure.add_axes((0.005, 0.02, 0.99, 0.87))
    for digits, left, row, register, opacity in bars:
        colours = ListedColormap(tutorial.registers[register][1:])
        axes.imshow(digits[None], cmap=colours, vmin=-1, vmax=1, aspect="auto", alpha=opacity,
                    extent=(left, left + tutorial.DIGITS, row + 0.68, row), zorder=2)
        word = tutorial.say(digits)
        if opacity == 1 and word != "nothing":
            won = arrow is not None and register == "next" and row == rows
            word = "begin" if "begin" in word else word[1:-1].replace(" ", "␣")
            axes.text(left - 0.6, row + 0.36, word, ha="right", va="center", fontsize=30 if won else 21,
                      color=tutorial.vermilion if won else "black", weight="bold" if won else "normal")
    for name, (register, left) in zip(names, LEFT.items()):
        axes.text(left + tutorial.DIGITS / 2, 0.75, name, ha="center", fontsize=22, fontproperties=font(True),
                  color=tutorial.registers[register][2])
    if arrow is not None:
        axes.annotate("", (LEFT["next"] - 7.4, rows + 0.3), (LEFT["who"] + tutorial.DIGITS + 0.2, arrow + 0.34),
                      arrowprops={"arrowstyle": "-|>", "color": tutorial.vermilion, "linewidth": 2.5,
                                  "mutation_scale": 22, "connectionstyle": "arc3,rad=0.14"}, zorder=3)
        for left, row in ((LEFT["who"], rows), (LEFT["before"], arrow)):
            axes.add_patch(Rectangle((left - 2.9, row - 0.1), tutorial.DIGITS + 3.2, 0.88, fill=False, zorder=3,
                                     edgecolor=tutorial.vermilion, linewidth=2.5))
        axes.text(LEFT["next"] - 5.0, rows + 0.36, "42", ha="center", va="center", fontsize=21, color="grey")
        axes.plot((LEFT["next"] - 6.7, LEFT["next"] - 3.3), (rows + 0.36, rows + 0.36), color="grey", linewidth=2)
    axes.set(xlim=(0, 79.3), ylim=(rows + 1, 0.1), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    figure.suptitle(title, fontsize=21, x=0.5, y=0.985, fontproperties=font(False))
    return rasterized(figure)


def stream(names, titles):
    """Frames of the embedding, who moving into before, the fact, and 7 copied over 42.

    `names` are those of the three registers, `titles` those of the four stages.
    """
    tutorial = new_tutorial()
    tokenizer = tutorial.tokenizer = tutorial.load_tokenizer(tutorial.packaged)  # `say` reads this name
    written = tutorial.in_memory(tutorial.narrow, tutorial.write_by_hand(tutorial.narrow), tokenizer)
    tokens = torch.tensor(tutorial.encode(written.tokenizer, tutorial.hint))
    _, streams, looks = tutorial.watch(written, tokens)
    copier = looks[1, tutorial.narrow["n_heads"] - 1].argmax(dim=-1).tolist()
    notes = [(place, place - 1) for place in range(1, len(tokens))]
    copies = [(place, found) for place, found in enumerate(copier) if found > 0]
    stages = zip(titles, ("who", "before", "next", "next"), ([], notes, [], copies))
    frames, standing = [], []
    for (title, register, moves), rows in zip(stages, streams):
        for step in range(1, 10 if moves else 1):
            share = step / 10
            flying = [(rows[found, tutorial.WHO].float(), LEFT[register], found + share * (place - found), register,
                       0.2 + 0.7 * share) for place, found in moves if found > 0]
            frames.append(stream_frame(tutorial, title, names, len(tokens) - 1, standing + flying))
        standing = [(digits, LEFT[name], row, name, 1) for name, (columns, _, _) in tutorial.registers.items()
                    for row, digits in enumerate(rows[:, columns].float()) if row and digits.abs().min() > 0.5]
        arrow = dict(copies)[len(tokens) - 1] if moves is copies else None
        frames += [stream_frame(tutorial, title, names, len(tokens) - 1, standing, arrow)] * HOLD
    return frames


def birth():
    """Frames of the tutorial's training of two layers, every sixth step."""
    tutorial = load_tutorial()
    unseen = tutorial.twice(0, 20, 1, 64, seed=5)
    losses, seen = [], []
    for llama, loss in tutorial.grow(2):
        losses.append(loss)
        if len(losses) % 6 == 1 or len(losses) == 300:
            seen.append((len(losses), tutorial.watch(llama, unseen)[2].detach()))
    last = seen[-1][1]
    heads = {"looks one token back": tutorial.best_heads(tutorial.one_back(last), 1)[0],
             "copies what followed": tutorial.best_heads(tutorial.what_followed(last, 20), 1)[0]}
    frames = []
    for step, looks in seen:
        figure = Figure(figsize=(9, 6))
        for i, (name, (layer, head)) in enumerate(heads.items()):
            axes = figure.add_axes((0.08 + 0.47 * i, 0.34, 0.4, 0.56))
            axes.imshow(looks[layer, head], vmin=0, vmax=1, aspect="auto", cmap="Blues")
            axes.set_title(f"layer {layer}: {name}", fontsize=15)
            axes.set(xticks=[], yticks=[])
            axes.set_xlabel("the token looked at", fontsize=12)
            axes.set_ylabel("the token that looks", fontsize=12)
        axes = figure.add_axes((0.08, 0.09, 0.87, 0.2))
        axes.plot(losses[:step], color=tutorial.vermilion, linewidth=2)
        axes.set(xlim=(0, 300), ylim=(0, 4.5), yticks=[0, 2, 4])
        axes.set_ylabel("loss", fontsize=13)
        axes.set_xlabel(f"training step {step}", fontsize=13)
        frames.append(rasterized(figure))
    return frames


# the frames of each moving picture, by its file's name without the ending
PICTURES = {
    "stream": partial(stream, ("who", "before", "next"), (
        "The embedding: each token's number, as a barcode",
        "Layer 0, attention: each token notes who stands before it",
        "Layer 0, a neuron: after ␣is and ␣ comes 42", "Layer 1, attention: the text said 7, so 7 beats 42")),
    "zh/stream": partial(stream, ("我是谁", "我前面是谁", "接下来是谁"), (
        "嵌入：每个词元的编号，画成条形码", "第0层的注意力：每个词元记下前面是谁",
        "第0层的一个神经元：␣is和␣之后是42", "第1层的注意力：上文说过7，于是7胜过42")),
    "birth": birth}


def save(name):
    """Draw images/NAME.gif. Its last frame stays for three seconds, and comes first, too: a page may show no other."""
    frames = PICTURES[name]()
    few = [frame.quantize(128, dither=Image.Dither.NONE) for frame in [frames[-1], *frames]]
    times = [1500] + [MILLISECONDS] * (len(few) - 2) + [3000]
    few[0].save(ROOT / "images" / f"{name}.gif", save_all=True, append_images=few[1:], duration=times, loop=0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=PICTURES)
    chosen = parser.parse_args().name
    for name in [chosen] if chosen else PICTURES:
        save(name)
