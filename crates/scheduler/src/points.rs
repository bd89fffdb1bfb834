//! The extension points at which a plugin can be enabled.

use std::fmt;

/// A point of the way of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Point {
    /// May it enter the queue?
    PreEnqueue,
    /// Which comes first?
    QueueSort,
    /// Preparing Filter.
    PreFilter,
    /// Will a node do?
    Filter,
    /// None will.
    PostFilter,
    /// Preparing Score.
    PreScore,
    /// How well does a node suit?
    Score,
    /// Taking what the pod needs.
    Reserve,
    /// May it be bound?
    Permit,
    /// Before it is bound.
    PreBind,
    /// Binding it.
    Bind,
    /// After it was bound.
    PostBind,
}

impl Point {
    /// All of them, by the names they have in configuration files.
    pub const ALL: &[(&str, Self)] = &[
        ("preEnqueue", Self::PreEnqueue),
        ("queueSort", Self::QueueSort),
        ("preFilter", Self::PreFilter),
        ("filter", Self::Filter),
        ("postFilter", Self::PostFilter),
        ("preScore", Self::PreScore),
        ("score", Self::Score),
        ("reserve", Self::Reserve),
        ("permit", Self::Permit),
        ("preBind", Self::PreBind),
        ("bind", Self::Bind),
        ("postBind", Self::PostBind),
    ];
}

/// A set of points.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Points(u16);

impl Points {
    /// Every point.
    pub const ALL: Self = Self(u16::MAX);
    /// No point.
    pub const NONE: Self = Self(0);

    /// Whether a point is among them.
    pub fn has(self, point: Point) -> bool {
        self.0 & (1 << point as u8) != 0
    }

    /// With or without a point.
    pub fn set(&mut self, point: Point, on: bool) {
        if on {
            self.0 |= 1 << point as u8;
        } else {
            self.0 &= !(1 << point as u8);
        }
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(_, p)| p == self);
        f.write_str(name.map_or("", |(name, _)| name))
    }
}
