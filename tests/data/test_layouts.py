"""Every layout, on small folders that lie exactly as the data sets do."""

import json
import re
from importlib import resources

import numpy as np
import pytest
from PIL import Image

from visae.data import config_names, load_data, read_config
from visae.data.coco import fill_polygon, run_lengths
from visae.data.layouts import LAYOUTS
from visae.registry import UnknownName


def picture(path, size=(20, 10), colour="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_imagenet_reads_classes_from_folders_and_words_from_the_list(tmp_path):
    for name in ("n01440764/a.JPEG", "n01440764/b.JPEG", "n02084071/c.JPEG"):
        picture(tmp_path / "val" / name)
    (tmp_path / "LOC_synset_mapping.txt").write_text("n01440764 tench, Tinca tinca\nn02084071 dog, domestic dog\n")
    data = load_data(f"imagenet?root={tmp_path}&split=val")
    assert data.factors == {"class": ["dog", "tench"]}
    assert [data[i].labels for i in range(3)] == [{"class": ("tench",)}] * 2 + [{"class": ("dog",)}]
    assert data[2].key == "n02084071/c.JPEG"


def coco_folder(root):
    picture(root / "val2017" / "000000000001.jpg")
    picture(root / "val2017" / "000000000002.jpg")
    instances = {
        "images": [
            {"id": 1, "file_name": "000000000001.jpg", "height": 10, "width": 20},
            {"id": 2, "file_name": "000000000002.jpg", "height": 10, "width": 20},
        ],
        "categories": [
            {"id": 7, "name": "cat", "supercategory": "animal"},
            {"id": 9, "name": "cup", "supercategory": "thing"},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 9, "bbox": [4, 4, 2, 2], "iscrowd": 0,
             "segmentation": [[4, 4, 6, 4, 6, 6, 4, 6]]},
            {"id": 2, "image_id": 1, "category_id": 7, "bbox": [2, 2, 10, 6], "iscrowd": 0,
             "segmentation": [[2, 2, 12, 2, 12, 8, 2, 8]]},
            {"id": 3, "image_id": 2, "category_id": 7, "bbox": [0, 0, 1, 10], "iscrowd": 1,
             "segmentation": {"size": [10, 20], "counts": [0, 10, 190]}},
        ],
    }  # fmt: skip
    captions = {
        "annotations": [{"image_id": 1, "caption": "A cup before a cat. "}, {"image_id": 1, "caption": "A cat."}]
    }
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(instances))
    (root / "annotations" / "captions_val2017.json").write_text(json.dumps(captions))
    return root


def test_coco_instances_become_regions_boxes_and_captions(tmp_path):
    data = load_data(f"coco?root={coco_folder(tmp_path)}")
    first, second = data[0], data[1]
    assert data.factors == {"category": ["cat", "cup"], "supercategory": ["animal", "thing"]}
    assert first.labels == {"category": ("cat", "cup"), "supercategory": ("animal", "thing")}
    assert [labels["category"] for labels in first.region_labels] == ["cat", "cup"]
    cat, cup = np.zeros((10, 20), bool), np.zeros((10, 20), bool)
    cup[4:6, 4:6] = True
    cat[2:8, 2:12] = True
    assert np.array_equal(first.mask("category", "cup"), cup)
    assert np.array_equal(first.mask("category", "cat"), cat & ~cup)
    assert first.boxes.tolist() == [[2, 2, 12, 8], [4, 4, 6, 6]]
    assert first.captions == ("A cup before a cat.", "A cat.")
    assert np.array_equal(second.regions, np.pad(np.ones((10, 1), int), ((0, 0), (0, 19))))


def test_polygons_cover_the_pixels_whose_centres_they_hold():
    angles = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    disc = fill_polygon(np.stack([20 + 11 * np.cos(angles), 14 + 11 * np.sin(angles)], axis=1), (30, 40))
    y, x = np.mgrid[:30, :40] + 0.5
    distance = np.hypot(x - 20, y - 14)
    assert disc[distance < 10.98].all()
    assert not disc[distance > 11].any()
    outside = fill_polygon(np.array([[-5, -5], [5, -5], [5, 5], [-5, 5]]), (30, 40))
    assert np.argwhere(outside).max() == 4
    assert outside.sum() == 25


def test_coco_run_lengths_as_numbers_and_as_text_agree():
    mask = np.random.default_rng(0).random((13, 17)) > 0.6
    flat = mask.T.reshape(-1)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat.astype(int), [0]]))) if flat.any() else np.array([])
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).astype(int).tolist()
    assert np.array_equal(run_lengths(counts, mask.shape), mask)
    assert np.array_equal(run_lengths(as_text(counts), mask.shape), mask)
    with pytest.raises(ValueError, match="cover 4 pixels but the image has 2 x 3"):
        run_lengths([1, 3], (2, 3))


def as_text(counts):
    """The encoder of pycocotools (rleToString), in Python."""
    text = ""
    for i, count in enumerate(counts):
        value = count - (counts[i - 2] if i > 2 else 0)
        more = True
        while more:
            bits = value & 0x1F
            value >>= 5
            more = (value != -1) if bits & 0x10 else (value != 0)
            text += chr((bits | 0x20 if more else bits) + 48)
    return text


def test_ade20k_masks_become_regions_by_class(tmp_path):
    picture(tmp_path / "images/validation/ADE_val_00000001.jpg")
    mask = np.zeros((10, 20), np.uint8)
    mask[:, :5], mask[:, 15:] = 3, 1
    (tmp_path / "annotations/validation").mkdir(parents=True)
    Image.fromarray(mask).save(tmp_path / "annotations/validation/ADE_val_00000001.png")
    heading = "Idx\tRatio\tTrain\tVal\tStuff\tName\n"
    lines = [f"{i + 1}\t0.1\t1\t1\t1\t{name}\n" for i, name in enumerate(("wall", "building, edifice", "sky"))]
    (tmp_path / "objectInfo150.txt").write_text(heading + "".join(lines))
    data = load_data(f"ade20k?root={tmp_path}&split=validation")
    sample = data[0]
    assert data.factors == {"object": ["building", "sky", "wall"]}
    assert sample.labels == {"object": ("sky", "wall")}
    assert np.array_equal(sample.mask("object", "sky"), mask == 3)
    assert np.array_equal(sample.mask("object", "wall"), mask == 1)
    assert sample.boxes.tolist() == [[15, 0, 20, 10], [0, 0, 5, 10]]


def test_a_mask_of_another_size_is_named(tmp_path):
    from visae.data import UnreadableImage

    picture(tmp_path / "images/a.jpg")
    (tmp_path / "masks").mkdir()
    Image.new("L", (5, 5), 1).save(tmp_path / "masks/a.png")
    found = LAYOUTS["segmentation_pairs"](tmp_path, images="images", masks="masks", classes=["x"])
    with pytest.raises(UnreadableImage, match=r"the mask has .* \(5, 5\) but its image has \(10, 20\)"):
        found.records[0].regions((10, 20))


def test_celeba_attributes_people_and_parts(tmp_path):
    for i in (1, 2, 3):
        picture(tmp_path / f"img_align_celeba/00000{i}.jpg")
    (tmp_path / "list_attr_celeba.txt").write_text(
        "3\nBald Smiling Young \n000001.jpg -1  1  1\n000002.jpg  1 -1 -1\n000003.jpg -1 -1 -1\n"
    )
    (tmp_path / "identity_CelebA.txt").write_text("000001.jpg 2880\n000002.jpg 2880\n000003.jpg 5\n")
    (tmp_path / "list_eval_partition.txt").write_text("000001.jpg 0\n000002.jpg 0\n000003.jpg 2\n")
    data = load_data(f"celeba?root={tmp_path}&split=train")
    assert data.factors == {"attribute": ["Bald", "Smiling", "Young"]}
    assert [data[i].labels["attribute"] for i in range(2)] == [("Smiling", "Young"), ("Bald",)]
    assert [data[i].group for i in range(2)] == ["2880", "2880"]
    assert len(data) == 2
    assert load_data(f"celeba?root={tmp_path}&split=test")[0].labels == {"attribute": ()}


def vindr_folder(root):
    columns = "study_id,series_id,image_id,laterality,view_position,height,width,breast_birads,breast_density,"
    columns += "finding_categories,finding_birads,xmin,ymin,xmax,ymax,split"
    rows = [
        "s1,x,i1,L,CC,100,200,BI-RADS 4,DENSITY C,\"['Mass']\",BI-RADS 4,20,10,60,50,training",
        "s1,x,i1,L,CC,100,200,BI-RADS 4,DENSITY C,\"['Mass', 'Asymmetry']\",BI-RADS 3,100,20,120,40,training",
        "s1,x,i2,L,MLO,100,200,BI-RADS 1,DENSITY C,['No Finding'],,,,,,training",
        "s2,x,i3,R,CC,100,200,BI-RADS 1,DENSITY B,['No Finding'],,,,,,test",
    ]
    (root / "finding_annotations.csv").write_text("\n".join([columns, *rows]) + "\n")
    for name in ("s1/i1", "s1/i2", "s2/i3"):
        picture(root / "images" / f"{name}.png", size=(200, 100) if name != "s1/i1" else (100, 50))
    return root


def test_vindr_mammo_boxes_become_regions_scaled_to_the_file(tmp_path):
    data = load_data(f"vindr-mammo?root={vindr_folder(tmp_path)}")
    sample = data[0]
    assert sample.labels["view"] == ("CC",)
    assert sample.labels["finding"] == ("Asymmetry", "Mass")
    assert sample.boxes.tolist() == [[10, 5, 30, 25], [50, 10, 60, 20], [50, 10, 60, 20]]
    assert [labels["finding"] for labels in sample.region_labels] == ["Mass", "Mass", "Asymmetry"]
    assert sample.mask("finding", "Mass")[5:25, 10:30].all()
    assert sample.mask("finding", "Mass").sum() == 400
    assert [data[i].group for i in range(2)] == ["s1", "s1"]
    assert data[1].boxes.shape == (0, 4)
    assert "No Finding" in data.factors["finding"]
    assert load_data(f"vindr-mammo?root={tmp_path}&split=test")[0].group == "s2"


def test_a_table_without_the_named_column_says_which_it_has(tmp_path):
    vindr_folder(tmp_path)
    with pytest.raises(ValueError, match=r"has no column patient; its columns are study_id, series_id"):
        load_data(f"vindr-mammo?root={tmp_path}", group="patient")


@pytest.mark.parametrize("name", config_names())
def test_every_entry_tells_its_licence_and_source_and_opens_with_its_command(name):
    config = read_config(name)
    text = (resources.files("visae.datasets_cfg") / f"{name}.yaml").read_text()
    assert re.match(rf"# visae \w+ .*--data \"?{name}", text)
    assert config["title"]
    assert config["licence"]
    assert config["source"]
    assert sum(key in config for key in ("layout", "prompts", "spec")) == 1


@pytest.mark.parametrize("name", [n for n in config_names() if "layout" in read_config(n)])
def test_a_data_set_that_is_not_there_says_where_it_should_be_and_how_to_say_so(name, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=rf"should be at {tmp_path}.*\?root=/path/to/it"):
        load_data(f"{name}?root={tmp_path}")
    monkeypatch.setenv("VISAE_DATA", str(tmp_path / "all"))
    with pytest.raises(FileNotFoundError, match=f"should be at {tmp_path / 'all' / read_config(name)['folder']}"):
        load_data(name)


def test_an_annotation_file_without_its_images_says_where_the_first_should_be(tmp_path):
    coco_folder(tmp_path)
    for path in (tmp_path / "val2017").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"none of the 2 images of coco is there; .*000000000001\.jpg"):
        load_data(f"coco?root={tmp_path}")


def test_wrong_names_splits_and_keys_are_answered_with_the_nearest(tmp_path):
    with pytest.raises(UnknownName, match="Did you mean 'imagenet'"):
        load_data("imagnet")
    with pytest.raises(UnknownName, match="Did you mean 'val'"):
        load_data("imagenet?split=vall")
    with pytest.raises(UnknownName, match="Did you mean 'root'"):
        load_data("imagenet?rot=/data")
    picture(tmp_path / "a.png")
    with pytest.raises(UnknownName, match="Did you mean 'check'"):
        load_data(f"{tmp_path}?chek=full")
    with pytest.raises(UnknownName, match="check"):
        load_data(f"{tmp_path}?check=deep")
