"""`python -m visae.world`: contact sheets and a speed measurement."""

import argparse
import time
from pathlib import Path

from visae.world.sheet import SHEETS
from visae.world.spec import world_from_spec


def _sheet(args: argparse.Namespace) -> None:
    names = list(SHEETS) if args.only == "all" else [args.only]
    for name in names:
        path = args.out if len(names) == 1 else args.out.with_stem(f"{args.out.stem}-{name}")
        picture = SHEETS[name](args.size)
        picture.resize((picture.width * args.zoom, picture.height * args.zoom), 0).save(path)
        print(path)  # noqa: T201


def _bench(args: argparse.Namespace) -> None:
    world = world_from_spec(args.world)
    start = time.perf_counter()
    for index in range(len(world)):
        world.render(index)
    pixels = time.perf_counter() - start
    start = time.perf_counter()
    for index in range(len(world)):
        world[index]
    samples = time.perf_counter() - start
    drawn, whole = len(world) / pixels, len(world) / samples
    print(f"{world.name}: {drawn:.0f} images/s, {whole:.0f} samples/s on one core")  # noqa: T201


def main(argv: list[str] | None = None) -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(prog="python -m visae.world", description=__doc__)
    commands = parser.add_subparsers(required=True)
    sheet = commands.add_parser("sheet", help="write contact sheets (OUT-NAME.png, or OUT.png for one)")
    sheet.add_argument("out", type=Path)
    sheet.add_argument("--only", choices=("all", *SHEETS), default="all")
    sheet.add_argument("--size", type=int, default=64, help="side of one image in pixels")
    sheet.add_argument("--zoom", type=int, default=1, help="enlarge each pixel")
    sheet.set_defaults(run=_sheet)
    bench = commands.add_parser("bench", help="images per second")
    bench.add_argument("world", nargs="?", default="world:train?n=1000&objects=1-3")
    bench.set_defaults(run=_bench)
    args = parser.parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    main()
