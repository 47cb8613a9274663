"""Drawn persons for the synthetic set: who somebody is, and everything that hides it.

A person is the colours and patterns of the clothes, the build, hair, hat and bag. All else is nuisance: the
camera's colours and scene, view, pose, light, things in front and behind, blur, noise, place and size.
Arrays are (rows, columns) or (rows, columns, 3), values of full light 255.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter

from reid_core.seeding import derive

WIDTH, HEIGHT = 64, 128  # pixels
VERSION = 1  # of what is drawn; raise it with every change of the pixels

# How strong each nuisance is; 0 removes it. Raw pixels, mean colour and an untrained network must fail
# (tests/data/test_synthetic.py), yet clustering must find its way: with twice CAMERA_CAST or SCENE_CONTRAST it
# finds cameras. Both shifts and PHASE together stay below 30 pixels, where patterns end.
CAMERA_CAST = 0.06  # largest log gain of a colour channel, one draw a camera
CAMERA_GAMMA = 0.06  # largest log gamma, one draw a camera
CAMERA_SHIFT = 12.0  # largest shift of all persons before a camera, pixels
CAMERA_ZOOM = 0.1  # largest change of their size
LIGHT_CAST = 0.05  # largest log gain of a colour channel, one draw an image
LIGHT_GAIN = 0.12  # largest log gain of all channels, one draw an image
SHADE = 0.25  # largest loss of light towards one side
SCENE_CONTRAST = 0.12  # of a camera's scene; 1 is as strong as clothes
SCENE_SHIFT = 32  # pixels that the view into a camera's scene moves between images
CLUTTER = 4.0  # foreign things behind a person, on average
CLUTTER_CONTRAST = 1.0  # of them and of what hides a person
OCCLUSION = 0.25  # share of images in which something hides a part of the person
PHASE = 5  # pixels that a pattern moves on the clothes
SHIFT = 5.0  # largest shift of the person, pixels
ZOOM = 0.1  # largest change of the person's size
BLUR = 0.8  # largest radius, pixels
NOISE = 5.0  # sd

# A pixel of part p, with or without the pattern's mark, has colour palette[p, mark].
_SCENE, _SKIN, _HAIR, _TORSO, _SLEEVE, _LEGS, _SHOES, _BAG, _HAT = range(9)
_CLOTHES = np.array(  # few, so that a colour alone tells little
    [[215, 40, 40], [40, 75, 205], [235, 205, 60], [235, 235, 235], [25, 25, 30], [40, 150, 65]]
)
_SKINS = np.array([[242, 200, 165], [205, 148, 107], [115, 76, 56]])
_HAIRS = np.array([[20, 15, 13], [90, 50, 25], [205, 165, 75]])
_PATTERNS = ("hoops", "stripes", "checks", "dots")
_PERIODS = (8, 13)  # pixels


@dataclass(frozen=True, kw_only=True)
class Person:
    """What all images of one identity share."""

    palette: np.ndarray  # (parts, 2, 3) float32
    torso: np.ndarray  # (2 HEIGHT, 2 WIDTH) bool, the pattern's marks
    legs: np.ndarray  # the same
    tall: float  # pixels
    wide: float  # half the shoulders, pixels
    sleeve: float  # share of the arms that is covered
    shorts: bool
    long_hair: bool
    hat: bool
    bag: bool


@dataclass(frozen=True, kw_only=True)
class Camera:
    """What all images of one camera share."""

    scene: Image.Image  # larger than an image by SCENE_SHIFT on every side
    gain: np.ndarray  # (3,)
    gamma: float
    shift: np.ndarray  # (x, y) pixels
    zoom: float


class _Body(NamedTuple):
    """Where a person stands: body x is -1 to 1 across the shoulders, y is 0 (crown) to 1 (soles)."""

    x: float
    y: float
    wide: float
    tall: float
    turn: int  # -1 faces left, 1 right, 0 towards the camera or away
    back: bool

    def at(self, x: float, y: float) -> tuple[float, float]:
        return self.x + x * self.wide, self.y + y * self.tall

    def box(self, x0: float, y0: float, x1: float, y1: float) -> list[tuple[float, float]]:
        return [self.at(min(x0, x1), y0), self.at(max(x0, x1), y1)]


def person(seed: int, pid: int) -> Person:
    """The identity ``pid``: a function of the arguments alone."""
    rng = np.random.default_rng(derive(seed, "person", pid))
    palette = np.zeros((9, 2, 3), np.float32)
    palette[_SKIN], palette[_HAIR] = rng.choice(_SKINS), rng.choice(_HAIRS)
    palette[_SHOES], palette[_BAG], palette[_HAT] = rng.choice(_CLOTHES, 3)[:, None]
    palette[_TORSO] = palette[_SLEEVE] = rng.choice(_CLOTHES, 2, replace=False)
    palette[_LEGS] = rng.choice(_CLOTHES, 2, replace=False)
    return Person(
        palette=palette,
        torso=_pattern(rng.choice(_PATTERNS), rng.choice(_PERIODS)),
        legs=_pattern(rng.choice(_PATTERNS), rng.choice(_PERIODS)),
        tall=rng.uniform(92, 106),
        wide=rng.uniform(13, 17),
        sleeve=rng.choice([0.0, 0.45, 0.9]),
        shorts=rng.random() < 0.3,
        long_hair=rng.random() < 0.4,
        hat=rng.random() < 0.25,
        bag=rng.random() < 0.35,
    )


def _pattern(kind: str, period: int) -> np.ndarray:
    y, x = np.mgrid[-HEIGHT:HEIGHT, -WIDTH:WIDTH]
    across, along = x % period < period // 2, y % period < period // 2
    from_dot = np.hypot(x % period - period / 2, y % period - period / 2)
    return {
        "hoops": along,
        "stripes": across,
        "checks": across ^ along,
        "dots": from_dot < 0.3 * period,
    }[kind]


def camera(seed: int, camid: int) -> Camera:
    """The camera ``camid``: a function of the arguments alone."""
    rng = np.random.default_rng(derive(seed, "camera", camid))
    wide, high = WIDTH + 2 * SCENE_SHIFT, HEIGHT + 2 * SCENE_SHIFT
    scene = Image.new("RGB", (wide, high), _colour(rng, SCENE_CONTRAST))
    draw = ImageDraw.Draw(scene)
    draw.rectangle((0, high * rng.uniform(0.5, 0.8), wide, high), _colour(rng, SCENE_CONTRAST))
    for _ in range(14):
        _thing(draw, rng, (wide, high), SCENE_CONTRAST)
    return Camera(
        scene=scene,
        gain=np.exp(CAMERA_CAST * rng.uniform(-1, 1, 3)),
        gamma=float(np.exp(CAMERA_GAMMA * rng.uniform(-1, 1))),
        shift=CAMERA_SHIFT * rng.uniform(-1, 1, 2),
        zoom=1 + CAMERA_ZOOM * rng.uniform(-1, 1),
    )


def photograph(who: Person, where: Camera, rng: Generator) -> Image.Image:
    """One image of a person by a camera: RGB, WIDTH x HEIGHT."""
    body = _stand(who, where, rng)
    part = np.asarray(_draw_body(who, body, rng))
    clothed = who.palette[part, _marks(who, part, body, rng)]
    image = np.where(part[..., None] == _SCENE, np.asarray(_view(where, rng)), clothed)
    return _expose(_occlude(image * _shade(rng), rng), where, rng)


def _stand(who: Person, where: Camera, rng: Generator) -> _Body:
    zoom = where.zoom + ZOOM * rng.uniform(-1, 1)
    x, y = where.shift + SHIFT * rng.uniform(-1, 1, 2)
    turn, back = ((-1, False), (1, False), (0, False), (0, True))[rng.integers(4)]
    wide, tall = who.wide * zoom * (0.75 if turn else 1), who.tall * zoom
    return _Body(WIDTH / 2 + x, (HEIGHT - tall) / 2 + y, wide, tall, turn, back)


def _draw_body(who: Person, body: _Body, rng: Generator) -> Image.Image:
    """The part at every pixel, from far to near."""
    canvas = Image.new("L", (WIDTH, HEIGHT), _SCENE)
    draw = ImageDraw.Draw(canvas)
    stride = rng.uniform(0.2, 1.4) if body.turn else rng.uniform(0, 0.4)
    swing = rng.uniform(-1.2, 1.2) if body.turn else rng.uniform(0, 0.6)
    shoulder = 0.2 if body.turn else 0.95
    _draw_arm(draw, who, body, -shoulder, -swing)
    for side in (-1, 1):
        _draw_leg(draw, who, body, 0.4 * side, stride * side)
    torso = [(-0.9, 0.17), (-0.35, 0.13), (0.35, 0.13), (0.9, 0.17), (0.75, 0.54), (-0.75, 0.54)]
    if who.bag and body.turn:
        draw.rectangle(body.box(0, 0.18, -1.9 * body.turn, 0.42), _BAG)
    draw.polygon([body.at(x, y) for x, y in torso], _TORSO)
    if who.bag and body.back:
        draw.rectangle(body.box(-0.6, 0.18, 0.6, 0.42), _BAG)
    _draw_arm(draw, who, body, shoulder, swing)
    _draw_head(draw, who, body)
    return canvas


def _draw_arm(
    draw: ImageDraw.ImageDraw, who: Person, body: _Body, shoulder: float, swing: float
) -> None:
    start, hand = (shoulder, 0.19), (shoulder + swing, 0.52)
    cuff = tuple(a + (b - a) * who.sleeve for a, b in zip(start, hand, strict=True))
    draw.line([body.at(*start), body.at(*hand)], _SKIN, round(0.05 * body.tall))
    if who.sleeve:
        draw.line([body.at(*start), body.at(*cuff)], _SLEEVE, round(0.065 * body.tall))


def _draw_leg(
    draw: ImageDraw.ImageDraw, who: Person, body: _Body, hip: float, stride: float
) -> None:
    knee, foot = (hip + 0.6 * stride, 0.74), (hip + stride, 0.96)
    thick = round(0.09 * body.tall)
    draw.line([body.at(*knee), body.at(*foot)], _SKIN if who.shorts else _LEGS, thick)
    draw.line([body.at(hip, 0.5), body.at(*knee)], _LEGS, thick + 1)
    toe = foot[0] + 0.25 * body.turn
    draw.ellipse(body.box(toe - 0.4, 0.95, toe + 0.4, 1.0), _SHOES)


def _draw_head(draw: ImageDraw.ImageDraw, who: Person, body: _Body) -> None:
    x, half = 0.15 * body.turn, 0.06 * body.tall / body.wide
    draw.rectangle(body.box(x - 0.2, 0.1, x + 0.2, 0.15), _SKIN)
    if who.long_hair:
        draw.rectangle(body.box(x - half, 0.05, x + half, 0.17), _HAIR)
    draw.ellipse(body.box(x - half, 0, x + half, 0.135), _HAIR)
    if not body.back:
        draw.ellipse(body.box(x - 0.8 * half, 0.035, x + 0.8 * half, 0.135), _SKIN)
    if who.hat:
        draw.rectangle(body.box(x - 1.2 * half, -0.02, x + 1.2 * half, 0.035), _HAT)


def _marks(who: Person, part: np.ndarray, body: _Body, rng: Generator) -> np.ndarray:
    """1 where a pattern shows its second colour; patterns move with the body."""
    x, y = rng.integers(-PHASE, PHASE + 1, 2)
    top, left = HEIGHT - round(body.y + 0.35 * body.tall) + y, WIDTH - round(body.x) + x
    window = np.s_[top : top + HEIGHT, left : left + WIDTH]
    torso = (part == _TORSO) | (part == _SLEEVE)
    return ((torso & who.torso[window]) | ((part == _LEGS) & who.legs[window])).astype(np.intp)


def _view(where: Camera, rng: Generator) -> Image.Image:
    """The part of the scene that shows behind the person, with clutter."""
    x, y = rng.integers(0, 2 * SCENE_SHIFT + 1, 2).tolist()
    view = where.scene.crop((x, y, x + WIDTH, y + HEIGHT))
    draw = ImageDraw.Draw(view)
    for _ in range(rng.poisson(CLUTTER)):
        _thing(draw, rng, (WIDTH, HEIGHT), CLUTTER_CONTRAST)
    return view


def _thing(
    draw: ImageDraw.ImageDraw, rng: Generator, size: tuple[int, int], contrast: float
) -> None:
    """A box or a disc anywhere."""
    x, y, a, b = rng.uniform((0, 0, 3, 3), (*size, 14, 20))
    shape = draw.rectangle if rng.random() < 0.6 else draw.ellipse
    shape((x - a, y - b, x + a, y + b), _colour(rng, contrast))


def _colour(rng: Generator, contrast: float) -> tuple[int, int, int]:
    """Of a thing of no interest."""
    red, green, blue = (125 + contrast * rng.uniform(-105, 105, 3)).astype(int).tolist()
    return red, green, blue


def _shade(rng: Generator) -> np.ndarray:
    """Light that falls off to one side, (HEIGHT, WIDTH, 1)."""
    across, along = rng.uniform(-SHADE, SHADE, 2) / 2
    x, y = np.linspace(-1, 1, WIDTH), np.linspace(-1, 1, HEIGHT)[:, None]
    return (1 - SHADE / 2 + across * x + along * y)[..., None].astype(np.float32)


def _occlude(image: np.ndarray, rng: Generator) -> np.ndarray:
    """Put something before the lower part or one side of the person, sometimes."""
    if rng.random() < OCCLUSION:
        rows, columns = rng.integers(HEIGHT // 8, HEIGHT // 3), rng.integers(WIDTH // 8, WIDTH // 3)
        where = [np.s_[-rows:], np.s_[:, :columns], np.s_[:, -columns:]]
        image[where[rng.integers(3)]] = _colour(rng, CLUTTER_CONTRAST)
    return image


def _expose(image: np.ndarray, where: Camera, rng: Generator) -> Image.Image:
    """Blur, the colours of camera and light, noise."""
    picture = Image.fromarray(image.astype(np.uint8))
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, BLUR)))
    log_light = LIGHT_CAST * rng.uniform(-1, 1, 3) + LIGHT_GAIN * rng.uniform(-1, 1)
    level = np.linspace(0, 1, 256) ** where.gamma
    table = np.clip(255 * np.outer(where.gain * np.exp(log_light), level), 0, 255).astype(np.uint8)
    exposed = np.asarray(picture.point(table.reshape(-1).tolist()), np.float32)
    exposed += NOISE * rng.standard_normal(exposed.shape, np.float32)
    return Image.fromarray(exposed.clip(0, 255).astype(np.uint8))
