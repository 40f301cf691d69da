"""The peers of bench/pictures.sh, one JSON object a run:
  python bench/peer_pictures.py train DIR STEPS BATCH     PyTorch, eager, fp32: steps of SimpleCNN on the idx files of DIR (MNIST's names)
  python bench/peer_pictures.py run DIR FILE.onnx         onnxruntime: the 10,000 pictures through a file that nibble exported
Threads: OMP_NUM_THREADS, 2. Prints why and leaves with 0 where the library is absent."""
import gzip
import json
import os
import resource
import sys
import time


def idx(folder, name, head):
    path = os.path.join(folder, name)
    data = open(path, "rb").read() if os.path.exists(path) else gzip.open(path + ".gz").read()
    return data[head:]


def seconds_of(work):
    wall, before = time.time(), resource.getrusage(resource.RUSAGE_SELF)
    work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return time.time() - wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def train(folder, steps, batch, threads):
    import numpy as np
    import torch
    from torch import nn

    torch.set_num_threads(threads)
    torch.manual_seed(1)
    x = torch.from_numpy(np.frombuffer(idx(folder, "train-images-idx3-ubyte", 16), np.uint8).reshape(-1, 1, 28, 28).copy()).float() / 255
    y = torch.from_numpy(np.frombuffer(idx(folder, "train-labels-idx1-ubyte", 8), np.uint8).astype(np.int64))
    m = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25), nn.Flatten(),
                      nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10))
    adam = torch.optim.AdamW(m.parameters(), 1e-3)

    def work():
        for i in range(steps):
            at = i * batch % (len(x) - batch + 1)
            loss = nn.functional.cross_entropy(m(x[at:at + batch]), y[at:at + batch])
            adam.zero_grad()
            loss.backward()
            adam.step()

    wall, cpu = seconds_of(work)
    return {"peer": f"PyTorch {torch.__version__}, eager, fp32", "pictures": steps * batch, "seconds": wall, "cpu_seconds": cpu}


def run(folder, file, threads):
    import numpy as np
    import onnxruntime

    x = np.frombuffer(idx(folder, "t10k-images-idx3-ubyte", 16), np.uint8).reshape(-1, 1, 28, 28)
    y = np.frombuffer(idx(folder, "t10k-labels-idx1-ubyte", 8), np.uint8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options)
    out = []

    def work():
        for i in range(0, len(x), 250):
            out.append(session.run(None, {"picture": x[i:i + 250] / np.float32(255)})[0].argmax(1))

    wall, cpu = seconds_of(work)
    right = float((np.concatenate(out) == y).mean())
    return {"peer": f"onnxruntime {onnxruntime.__version__}, int8", "pictures": len(x), "accuracy": right, "seconds": wall, "cpu_seconds": cpu}


try:
    n = int(os.environ.get("OMP_NUM_THREADS", "2"))
    what, *rest = sys.argv[1:]
    print(json.dumps(train(rest[0], int(rest[1]), int(rest[2]), n) if what == "train" else run(rest[0], rest[1], n)))
except ImportError as error:
    print(f"skipped: {error}")
