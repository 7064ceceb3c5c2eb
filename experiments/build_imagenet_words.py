"""Writes the everyday words into src/groupvit/text/imagenet_words.tsv, from WordNet 3.0 and the nouns of captions.

    apt-get install wordnet-base && pip download --no-deps timm && unzip timm-*.whl
    python -m experiments.build_imagenet_words /usr/share/wordnet/data.noun \
        timm/data/_info/imagenet_synsets.txt data/captions

The id of a class (n02123045) is the place of its sense in WordNet's file, so the crane on a lake is no machine. What is
above it there (tabby cat, domestic cat, cat, feline, ... animal) is kept if captions say it. The file holds CLIP's
names of the classes before the first tab; they stay. The wheel is unzipped, never imported.
"""

import json
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import tyro
from experiments.command import run_script

from groupvit.data.shards import find_shards, scan_shard
from groupvit.errors import InputError
from groupvit.files import write_atomically
from groupvit.text.nouns import nouns_of_photo

OUTPUT = Path(__file__).parents[1] / "src/groupvit/text/imagenet_words.tsv"
CLASSES = Path(__file__).parents[1] / "src/groupvit/evaluation/classes.json"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Everyday nouns that small sets of captions may lack.
EVERYDAY = _words(
    "aircraft alligator antelope ape appliance armor automobile axe bandage beetle buffalo bullfrog burger camel "
    "cockatoo coral corgi crab crocodile dinosaur doberman dresser drill eagle egret finch fox frog goose hamburger "
    "hawk heron insect instrument jar jewelry jug labrador lantern lemur lizard lobster lock loudspeaker magazine "
    "mastiff necktie orchid owl parrot peacock penguin pepper pistol pudding puzzle rabbit reptile robin rocket "
    "salamander salmon saw schnauzer seal setter shark shed sloth soup spider squash squirrel stereo stew stocking "
    "stork swan telescope theater turtle weapon whale wig wolf"
) | {"fire engine", "german shepherd", "street sign"}
# A word of several senses, by the lemma that stands in the right one alone. The word itself is in NEVER.
ONE_SENSE = {
    "automobile": "car",  # not the carriage of a train
    "chapeau": "hat",
    "cooking pan": "pan",
    "domestic cat": "cat",  # no lion
    "drinking glass": "glass",
    "edible fruit": "fruit",  # no acorn
    "home appliance": "appliance",
    "musical instrument": "instrument",
    "nutriment": "food",
    "plant life": "plant",  # no sawmill
    "plaything": "toy",  # no small dog
    "self-propelled vehicle": "vehicle",
    "solid food": "food",
}
# Too general or abstract for a thing in a photo, or said of other things.
NEVER = _words(
    "amphibian area arm attire bank bar barrier board brass canopy cap car case cat cell circle coach cock "
    "construction container control controller course cover craft cream cycle decoration denim design device disc "
    "disk dish display dress ear equipment figure file food formation fountain fruit game garb gate gear glass gown "
    "harp hat head headdress hip home horn hose house individual instrument jumper lamp landing lens light machine "
    "market match medium meter mini missile monitor mortar nipple object outfit pan part patch piece pirate plant "
    "platform point pool post product projectile racer rack rail ridge rod roll round rubber runner scale screen seat "
    "shade shape sheet shell shield slot spot stand string structure stuff surface system top toy tub upright utensil "
    "vehicle watercraft wear wheel wind wood work"
)
LAST = ("animal", "clothing", "food")
# By hand, the most specific words first: what captions say and WordNet does not, and the classes they are said of.
ADDED = {
    "chicken": "rooster, hen",
    "husky": "siberian husky, alaskan malamute",
    "labrador": "labrador retriever",
    "dog": "dingo, dhole, african wild dog",
    "panda": "giant panda, red panda",
    "rabbit": "hare",
    "pig": "wild boar, warthog",
    "bear": "giant panda",
    "buffalo": "bison",
    "cow": "ox",
    "sheep": "bighorn sheep",
    "elephant": "tusker",
    "crab": "hermit crab",
    "ferret": "european polecat, black-footed ferret",
    "jet": "airliner, military aircraft",
    "wing": "airplane wing",
    "airplane": "military aircraft, airplane wing",
    "plane": "military aircraft, airplane wing",
    "aeroplane": "military aircraft, airplane wing",
    "blimp": "airship",
    "taxi": "taxicab",
    "cab": "taxicab",
    "van": "ambulance, minivan",
    "camper": "recreational vehicle",
    "plow": "snowplow",
    "truck": "snowplow",
    "cart": "golf cart",
    "locomotive": "electric locomotive, steam locomotive",
    "streetcar": "tram",
    "train": "electric locomotive, steam locomotive, tram, freight car, railroad car",
    "tractor": "combine harvester, threshing machine",
    "scooter": "vespa, moped",
    "motorcycle": "vespa, moped",
    "motorbike": "vespa, moped",
    "speedboat": "motorboat",
    "kayak": "canoe",
    "sailboat": "catamaran, trimaran, schooner",
    "ship": "schooner, ocean liner, container ship, pirate ship, shipwreck",
    "boat": "catamaran, trimaran, schooner, ocean liner, container ship, pirate ship, shipwreck",
    "tire": "car wheel",
    "wheel": "car wheel, paddle wheel, potter's wheel",
    "carriage": "horse-drawn vehicle",
    "wine": "red wine",
    "wine glass": "red wine, goblet",
    "beer": "beer glass",
    "glass": "red wine",
    "coffee": "espresso",
    "mug": "coffee mug",
    "cup": "coffee mug, measuring cup, espresso",
    "pitcher": "drink pitcher",
    "jug": "drink pitcher",
    "bottle": "lotion, sunscreen, perfume",
    "spoon": "ladle",
    "utensil": "spatula, ladle, wooden spoon",
    "toilet": "toilet seat",
    "crib": "infant bed, cradle, bassinet",
    "bed": "infant bed",
    "blanket": "quilt",
    "laptop": "notebook computer",
    "computer": "desktop computer",
    "monitor": "crt monitor, desktop computer",
    "screen": "monitor, crt monitor, television",
    "tv": "television, monitor, crt monitor, home theater, entertainment center",
    "television": "monitor, crt monitor, home theater, entertainment center",
    "keyboard": "keyboard space bar",
    "typewriter": "typewriter keyboard",
    "controller": "joystick",
    "cell phone": "mobile phone",
    "oven": "stove",
    "appliance": "stove, coffeemaker",
    "fridge": "refrigerator",
    "dryer": "hair dryer",
    "watch": "stopwatch",
    "traffic sign": "traffic or street sign",
    "lamp": "table lamp, lampshade, spotlight",
    "light": "traffic light, table lamp, spotlight, torch, candle",
    "pumpkin": "carved pumpkin",
    "handbag": "purse",
    "bag": "punching bag",
    "tennis racket": "racket",
    "skis": "ski",
    "corn": "corn cob",
    "vegetable": "corn, corn cob",
    "dish": "plate",
    "pasta": "carbonara",
    "pie": "pot pie",
    "chocolate": "chocolate syrup",
    "food": "corn, corn cob, dough, carbonara, guacamole",
    "mushroom": "coral fungus, agaric, gyromitra, stinkhorn mushroom, earth star fungus, bolete, "
    "hen of the woods mushroom",
    "nut": "acorn, horse chestnut seed",
    "berry": "rose hip",
    "flower": "rapeseed",
    "potted plant": "plant pot",
    "plant": "plant pot, rapeseed, rose hip",
    "book": "comic book, dust jacket",
    "bookshelf": "bookcase, library",
    "shelf": "bookcase",
    "ballplayer": "baseball player",
    "player": "baseball player",
    "athlete": "baseball player",
    "groom": "bridegroom",
    "diver": "scuba diver",
    "man": "baseball player, bridegroom, scuba diver",
    "glasses": "sunglasses",
    "hat": "graduation cap",
    "cap": "swimming cap, shower cap, graduation cap",
    "hair": "hair wig",
    "jacket": "trench coat",
    "pants": "jeans",
    "shorts": "swim trunks / shorts",
    "swimsuit": "tights",
    "dress": "gown, hoop skirt, overskirt, abaya",
    "boot": "cowboy boot",
    "shoe": "cowboy boot, clogs",
    "mask": "oxygen mask",
    "tower": "bell tower, lighthouse, water tower",
    "building": "castle, bell tower, lighthouse",
    "house": "cliff dwelling, mobile home",
    "tent": "yurt",
    "wall": "stone wall",
    "gate": "turnstile",
    "window": "window screen, window shade",
    "blind": "window shade",
    "pole": "flagpole, maypole, totem pole",
    "monument": "obelisk",
    "plaque": "brass memorial plaque",
    "dock": "pier",
    "pier": "dock",
    "shore": "sandbar",
    "cliff": "promontory",
    "rock": "cliff, megalith, promontory",
    "coral": "coral reef",
    "lake": "lakeshore",
    "sand": "beach, sandbar",
    "steam": "geyser",
    "water": "lakeshore, fountain",
    "rifle": "assault rifle",
    "barrel": "rain barrel",
    "paper": "paper towel",
    "package": "product packet / packaging",
    "trumpet": "cornet",
    "horn": "cornet, french horn",
    "flute": "pan flute",
    "drum": "steel drum",
    "speaker": "music speaker",
    "stereo": "cd player, cassette player, tape player",
    "printer": "photocopier",
    "machine": "slot machine, vending machine, automated teller machine, threshing machine",
    "pump": "gas pump",
    "weight": "barbell, dumbbell",
    "bar": "gymnastic horizontal bar, parallel bars",
    "heater": "space heater, radiator",
    "net": "mosquito net",
    "web": "spider web",
    "tub": "bathtub, hot tub",
    "pot": "crock pot, dutch oven",
    "can": "milk can, trash can, hair spray",
    "mower": "lawn mower",
    "bell": "bell or wind chime",
}
# By hand: what WordNet says and captions do not, or not of that thing.
WRONG = {
    "animal": "teddy bear",
    "kite": "kite (bird of prey)",
    "cricket": "cricket insect",
    "cardigan": "cardigan welsh corgi",
    "wolf": "coyote",
    "car": "ambulance",
    "truck": "minivan, police van",
    "wagon": "police van, rickshaw",
    "bike": "moped",  # "bike" is to mean a bicycle
    "ship": "submarine",
    "plane": "block plane",
    "aircraft": "balloon",
    "vehicle": "electric locomotive, steam locomotive, tram",
    "plate": "breastplate, pickelhaube, hockey puck",
    "ball": "punching bag, bubble",
    "sandwich": "hot dog",
    "bread": "meatloaf",
    "beverage": "tea cup",
    "drink": "tea cup",
    "table": "desk",
    "oven": "dutch oven",
    "appliance": "dutch oven",
    "pot": "coffeemaker",
    "computer": "slide rule, website",
    "stereo": "ipod",
    "convertible": "couch",
    "furniture": "toilet seat, table lamp, bassinet",
    "clothing": "christmas stocking, hair wig, seat belt, mask",
    "jean": "jeans",
    "jacket": "dust jacket",
    "jar": "vase, beaker",
    "sign": "traffic light, scoreboard",
    "theater": "home theater",
    "building": "home theater, apiary, library, restaurant",
    "shed": "apiary, boathouse",
    "fence": "stone wall",
    "tank": "rain barrel, water tower",
    "stick": "crutch, flagpole, matchstick, spindle",
    "pipe": "pan flute",
    "toy": "swing",
    "tool": "lawn mower, plunger",
    "cloth": "paper towel",
    "fabric": "paper towel, bath towel, baby bib, dishcloth, handkerchief",
    "sauce": "carbonara",
}


def everyday_nouns(captions: Path, min_count: int) -> set[str]:
    """Nouns of `min_count` photos of the shards or more, and the classes of the benchmarks.

    ImageNet's own names in a list of tags do not count: they say nothing about captions.
    """
    shards = find_shards(captions)
    counts = Counter(noun for shard in shards for row in scan_shard(shard)[0] for noun in nouns_of_photo(row.captions))
    classes = json.loads(CLASSES.read_text(encoding="utf-8"))
    lists = [*classes["names"].values(), *classes["synonyms"].values()]
    files = [file for file in captions.glob("*-vocabulary.txt") if "imagenet" not in file.name]
    lists += [file.read_text(encoding="utf-8").split("\n") for file in files]
    return {noun for noun, count in counts.items() if count >= min_count} | EVERYDAY | set(chain.from_iterable(lists))


def synset(wordnet: bytes, place: int) -> tuple[list[str], list[int]]:
    """The words of the sense at `place`, and the places of the senses right above it."""
    _, _, _, count, *fields = wordnet[place : wordnet.index(b"\n", place)].split(b" | ")[0].decode().split()
    words, (_, *pointers) = fields[: 2 * int(count, 16) : 2], fields[2 * int(count, 16) :]
    # A pointer is a symbol, a place, a part of speech and the words it joins; @ is "is a", @i "is an instance of".
    above = [int(at) for sign, at in zip(pointers[::4], pointers[1::4], strict=False) if sign in ("@", "@i")]
    return [word.replace("_", " ").lower() for word in words], above


def senses(wordnet: bytes, place: int) -> dict[int, list[str]]:
    """The sense at `place` and all above it, the nearest first, with their words."""
    found: dict[int, list[str]] = {}
    level = [place]
    while level:
        words, above = zip(*(synset(wordnet, at) for at in level), strict=True)
        found |= {at: said for at, said in zip(level, words, strict=True) if at not in found}
        level = list(dict.fromkeys(at for places in above for at in places if at not in found))
    return found


def words_of(name: str, senses: Iterable[list[str]], everyday: set[str]) -> list[str]:
    """What captions call a class, the most specific word first, without its name."""
    said = [ONE_SENSE.get(word, word) for words in senses for word in words if word in ONE_SENSE or word not in NEVER]
    by_hand = [word for word, names in ADDED.items() if name in names.split(", ")]
    wrong = {name} | {word for word, names in WRONG.items() if name in names.split(", ")}
    words = dict.fromkeys(by_hand + [word for word in said if word in everyday])
    return sorted((word for word in words if word not in wrong), key=lambda word: word in LAST)


def main(
    wordnet: tyro.conf.Positional[Path],
    synsets: tyro.conf.Positional[Path],
    captions: tyro.conf.Positional[Path],
    min_count: int = 10,
    output: Path = OUTPUT,
) -> None:
    """Write the table.

    Args:
        wordnet: data.noun of WordNet 3.0.
        synsets: the ids of the classes, one a line, in their order.
        captions: a folder of caption shards, and of lists of tags (*-vocabulary.txt).
        min_count: how many photos a noun must have in the captions.
        output: the table, whose names stay.
    """
    everyday, data = everyday_nouns(captions, min_count), wordnet.read_bytes()
    names = [line.split("\t")[0] for line in output.read_text(encoding="utf-8").splitlines()]
    lists = [words.split(", ") for words in (*ADDED.values(), *WRONG.values())]
    if unknown := set(chain.from_iterable(lists)) - {name.lower() for name in names}:
        raise InputError(f"{output} has no class {', '.join(sorted(unknown))}; mend the name in {__file__}")
    lines = []
    for name, wnid in zip(names, synsets.read_text(encoding="utf-8").split(), strict=True):
        words = words_of(name.lower(), senses(data, int(wnid[1:])).values(), everyday)
        lines.append(f"{name}\t{', '.join(words)}\n")
    write_atomically(output, "".join(lines).encode())
    found = [line.split("\t")[1].strip() for line in lines]
    print(f"{output}: {len(found) - found.count('')} of {len(found)} classes have words")


if __name__ == "__main__":
    run_script(main)
