#!/usr/bin/env python3
"""Accuracy of a network for pictures in floats and under recipes, paired: each quantized network beside the float one of its seed.
usage: study_pictures.py build/nibble --data mnist:FOLDER [--model simplecnn] [--seeds 1,2,3] [--epochs N] [--qat-epochs N] [--rows ROW,...] [--work FOLDER]
ROW: qat:RECIPE, or METHOD:RECIPE of `nibble ptq`; RECIPE may be a file. Said again it goes on: runs that are there are kept."""
import argparse, json, os, statistics, subprocess, sys

ROWS = "static:w8a8,mse:w8a8,mse+biascorrect:w4a8,qat:w8a8,qat:w4a8,qat:w4a4,qat:w2a4"


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("nibble")
    p.add_argument("--data", required=True)
    p.add_argument("--model", default="simplecnn")
    p.add_argument("--seeds", default="1,2,3")
    p.add_argument("--epochs", help="of floats (nibble's own number)")
    p.add_argument("--qat-epochs", help="of QAT (nibble's own number)")
    p.add_argument("--rows", default=ROWS)
    p.add_argument("--work", default="study_pictures")
    p.add_argument("--threads", default=str(os.cpu_count()))
    return p.parse_args()


def run(o, *words):
    r = subprocess.run([o.nibble, *words, "--threads", o.threads, "--quiet"], stdout=subprocess.PIPE, text=True)
    if r.returncode:
        sys.exit(f"{' '.join(words)}: exit {r.returncode}")
    return r.stdout


def accuracy(o, path):
    """Percent; kept beside the file."""
    kept = path.rstrip("/") + ".json"
    if not os.path.exists(kept) or os.path.getmtime(kept) < os.path.getmtime(path if os.path.isfile(path) else path + "/last.h5"):
        told = run(o, "eval", path, "--data", o.data, "--json")
        with open(kept, "w") as f:
            f.write(told)
    with open(kept) as f:
        return 100 * json.load(f)["accuracy"]


def trained(o, folder, *words, epochs):
    run(o, *words, "--data", o.data, *(["--epochs", epochs] if epochs else []), "-o", folder)
    return accuracy(o, folder)


def of_row(o, row, base, seed):
    method, recipe = row.split(":", 1)
    path = f"{base}.{method}.{os.path.basename(recipe)}"
    if method == "qat":
        return trained(o, path, "qat", base, "--recipe", recipe, "--seed", seed, epochs=o.qat_epochs)
    if not os.path.exists(path + ".h5"):
        run(o, "ptq", method, base, "--recipe", recipe, "--data", o.data, "--seed", seed, "-o", path + ".h5")
    return accuracy(o, path + ".h5")


def main():
    o = arguments()
    seeds, rows = o.seeds.split(","), o.rows.split(",")
    os.makedirs(o.work, exist_ok=True)
    name = os.path.join(o.work, f"{os.path.basename(o.model)}.{o.data.split(':')[0]}")
    floats, found = [], {row: [] for row in rows}
    for seed in seeds:
        base = f"{name}.{seed}"
        floats.append(trained(o, base, "train", "--model", o.model, "--seed", seed, epochs=o.epochs))
        print(f"seed {seed}: float {floats[-1]:.2f} %", file=sys.stderr, flush=True)
        for row in rows:
            found[row].append(of_row(o, row, base, seed))
            print(f"seed {seed}: {row} {found[row][-1]:.2f} %, {found[row][-1] - floats[-1]:+.2f}", file=sys.stderr, flush=True)
    print(f"{o.model}, {o.data.split(':')[0]}, seeds {o.seeds}: float {statistics.mean(floats):.2f} % ({', '.join(f'{x:.2f}' for x in floats)})\n")
    print("| | accuracy | points from float, mean | of each seed |\n|---|---:|---:|---|")
    for row in rows:
        less = [a - b for a, b in zip(found[row], floats)]
        method, recipe = row.split(":", 1)
        print(f"| `{method}` `{os.path.basename(recipe)}` | {statistics.mean(found[row]):.2f} % | {statistics.mean(less):+.2f} | {', '.join(f'{x:+.2f}' for x in less)} |")


if __name__ == "__main__":
    main()
