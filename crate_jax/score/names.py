"""What `score` can measure, and on what: names alone, so that --help starts at once."""

TASKS = ("attention", "maskcut", "corloc", "saliency", "knn", "artifacts")
BOXES = ("voc07", "voc12", "coco20k")
SALIENCY = ("ecssd", "duts", "omron")
DATASETS = ("voc", "coco", *BOXES, *SALIENCY, "hummingbird", "scenes")
