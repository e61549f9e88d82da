//! What is known of topics: which can be written, which rows wait for which, and what is to be asked next.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock};

use super::Aggregate;
use super::pause::Pause;
use super::row::ByAggregate;
use super::topic_hold::{Help, TopicHold};
use crate::core::{TopicPartition, TopicState};

/// Stands for all topics that are not held by a name of their own; no topic can have this name.
pub static OTHERS: LazyLock<Arc<str>> = LazyLock::new(|| "*".into());

/// So many topics are held by name, whatever their share.
const BY_NAME_MIN: usize = 100;
/// And no more than these, each an entry in PostgreSQL.
const BY_NAME_MAX: usize = 1_000;
/// Names that are remembered; bounds memory at about 10 MB. Rows of any other topic are held among others, unasked.
const NAMES_MAX: usize = 50_000;
/// Aggregates whose rows are known to wait for a topic, bounds memory at 4 MB. Of any beyond these a row for another
/// topic does not wait.
const BEHIND_MAX: usize = 100_000;

/// The longest pauses in turns of 2 s: of a topic that is held by name, of one among others, and of the rows
/// of topics whose names are not remembered.
const PAUSE_MAX: u64 = 5;
const PAUSE_AMONG_OTHERS_MAX: u64 = 30;
const PAUSE_FORGOTTEN_MAX: u64 = 300;
/// Turns after which every topic is asked for.
const ALL_EVERY: u64 = 15;
/// Turns between two releases of what is held among others, and how long one may be put off.
const RELEASE_EVERY: u64 = 5;

/// Topics to ask for.
#[derive(Debug, Default)]
pub struct Questions {
    pub usual: Vec<Arc<str>>,
    /// Rows of theirs come one after another: they are asked for before all others.
    pub urgent: Vec<Arc<str>>,
    /// No row waits for them.
    pub watched: Vec<Arc<str>>,
}

impl Questions {
    pub fn is_empty(&self) -> bool {
        self.usual.is_empty() && self.urgent.is_empty() && self.watched.is_empty()
    }
}

impl From<Vec<Arc<str>>> for Questions {
    fn from(usual: Vec<Arc<str>>) -> Self {
        Self {
            usual,
            ..Self::default()
        }
    }
}

#[derive(Debug)]
enum Topic {
    Asked {
        /// Rows of it are held among others.
        is_among_others: bool,
        is_urgent: bool,
    },
    Available,
    Held(TopicHold, Pause),
    /// It can't be written, and its rows are held among others.
    Missing,
    /// It can be written, and so many rows are held among others that its own may be among them: they go out first.
    Returning,
}

/// What the core needs to know before a record goes out.
pub(super) enum TopicAnswer {
    Available,
    /// Its rows are held under this name.
    Held(Arc<str>),
    /// Nobody has answered yet.
    Asked,
}

#[derive(Debug)]
pub(super) struct Topics {
    share: f64,
    topics: HashMap<Arc<str>, Topic>,
    asked: usize,
    by_name: usize,
    missing: usize,
    questions: Questions,
    behind: HashMap<Aggregate, Behind, ByAggregate>,
    turn: u64,
    others: Others,
}

/// The topic for which rows of an aggregate wait, and the number of the first one.
#[derive(Debug)]
struct Behind {
    topic: Arc<str>,
    first: Option<i64>,
}

/// What is held among others.
#[derive(Debug)]
struct Others {
    /// Rows that can go out are among them, since this turn.
    due_since: Option<u64>,
    is_urgent: bool,
    released_at: Option<u64>,
    /// Topics are among them whose names are not known.
    are_forgotten: bool,
    asking: Pause,
    looking: Pause,
}

impl Topics {
    pub(super) fn new(share: f64) -> Self {
        Self {
            share,
            topics: HashMap::new(),
            asked: 0,
            by_name: 0,
            missing: 0,
            questions: Questions::default(),
            behind: HashMap::default(),
            turn: 0,
            others: Others {
                // A session before this process may have left some.
                due_since: Some(0),
                is_urgent: false,
                released_at: None,
                are_forgotten: false,
                asking: Pause::default(),
                looking: Pause::default(),
            },
        }
    }

    fn set(&mut self, name: &Arc<str>, topic: Topic) {
        self.count(&topic, 1);
        if let Some(before) = self.topics.insert(name.clone(), topic) {
            self.count(&before, -1);
        }
    }

    fn count(&mut self, topic: &Topic, by: isize) {
        let count = match topic {
            Topic::Asked { .. } => &mut self.asked,
            Topic::Held(..) => &mut self.by_name,
            Topic::Missing => &mut self.missing,
            Topic::Available | Topic::Returning => return,
        };
        *count = count.saturating_add_signed(by);
    }

    /// Begins with the holds that are recorded; what is known of topics that can be written stays.
    pub(super) fn restore(&mut self, recorded: Vec<(Arc<str>, TopicHold)>) {
        let names: HashSet<_> = recorded.iter().map(|(name, _)| name.clone()).collect();
        if !names.contains(&*OTHERS) {
            self.others_are_released();
        }
        self.behind
            .retain(|_, behind| names.contains(&behind.topic));
        for (name, mut hold) in recorded {
            if let Some(known) = self.hold(&name) {
                hold.help = known.help;
            }
            self.set(&name, Topic::Held(hold, Pause::from(self.turn)));
        }
    }

    fn others_are_released(&mut self) {
        if let Some(before) = self.topics.remove(&*OTHERS) {
            self.count(&before, -1);
            self.others.released_at = Some(self.turn);
        }
        self.others.due_since = None;
        self.others.is_urgent = false;
        self.others.are_forgotten = false;
        for topic in self.topics.values_mut() {
            if matches!(topic, Topic::Returning) {
                *topic = Topic::Available;
            }
        }
    }

    /// Nothing is known any more of which rows are held among others: they are looked at before anything else is read.
    pub(super) fn lose_sight(&mut self) {
        self.behind.clear();
        self.others_are_due();
    }

    fn forget_others(&mut self) {
        if !self.others.are_forgotten {
            self.others.are_forgotten = true;
            let looking = &mut self.others.looking;
            looking.turns = looking.turns.max(RELEASE_EVERY);
            looking.turn = self.turn + looking.turns;
        }
    }

    /// What stands in the way of a record; a topic that nobody knows is to be asked for.
    pub(super) fn answer(&mut self, name: &Arc<str>) -> TopicAnswer {
        match self.topics.get(name) {
            Some(Topic::Available) => TopicAnswer::Available,
            Some(Topic::Held(..)) => TopicAnswer::Held(name.clone()),
            Some(Topic::Missing | Topic::Returning) => TopicAnswer::Held(OTHERS.clone()),
            Some(Topic::Asked { .. }) => TopicAnswer::Asked,
            None if self.topics.len() >= NAMES_MAX => {
                self.forget_others();
                TopicAnswer::Held(OTHERS.clone())
            }
            None => {
                let topic = Topic::Asked {
                    is_among_others: false,
                    is_urgent: false,
                };
                self.set(name, topic);
                self.questions.usual.push(name.clone());
                TopicAnswer::Asked
            }
        }
    }

    /// Puts a row of this topic among others.
    pub(super) fn put_among_others(&mut self, name: &Arc<str>) {
        match self.topics.get_mut(name) {
            Some(Topic::Asked {
                is_among_others,
                is_urgent,
            }) => {
                let is_second = std::mem::replace(is_among_others, true);
                if is_second && !std::mem::replace(is_urgent, true) {
                    self.questions.urgent.push(name.clone());
                }
            }
            Some(Topic::Available) => self.others_are_due(),
            Some(Topic::Held(..) | Topic::Missing | Topic::Returning) | None => {}
        }
    }

    fn others_are_due(&mut self) {
        self.others.due_since.get_or_insert(self.turn);
    }

    /// Counts a row that is put aside for a topic, or behind a row of its aggregate that is.
    pub(super) fn put_behind(
        &mut self,
        aggregate: Aggregate,
        seq: Option<i64>,
        name: &Arc<str>,
        rows: u64,
    ) {
        if !self.topics.contains_key(name) {
            let reason = "so many topics can't be written, or nobody has said yet whether they can, that they \
                          are paused together";
            let hold = TopicHold {
                reason: reason.to_owned(),
                is_refused: false,
                help: Help::Unknown,
                rows: 0,
            };
            self.set(name, Topic::Held(hold, Pause::from(self.turn)));
        }
        if let Some(Topic::Held(hold, _)) = self.topics.get_mut(name) {
            hold.rows += rows;
        }
        if self.has_room_behind() {
            self.behind.entry(aggregate).or_insert_with(|| Behind {
                topic: name.clone(),
                first: seq,
            });
        }
    }

    /// Whether it is still known of every aggregate that rows of it wait.
    pub(super) fn has_room_behind(&self) -> bool {
        self.behind.len() < BEHIND_MAX
    }

    /// The topic for which rows of this aggregate wait that stand ahead of the one with this number.
    pub(super) fn behind(&self, aggregate: Aggregate, seq: Option<i64>) -> Option<Arc<str>> {
        if self.behind.is_empty() {
            return None;
        }
        let behind = self.behind.get(&aggregate)?;
        let is_ahead = matches!((seq, behind.first), (Some(seq), Some(first)) if seq < first);
        (!is_ahead).then(|| behind.topic.clone())
    }

    /// Holds a topic whose records were refused.
    pub(super) fn refuse(&mut self, name: &Arc<str>, reason: String) {
        let hold = TopicHold {
            reason,
            is_refused: true,
            help: Help::Allow,
            rows: 0,
        };
        self.set(name, Topic::Held(hold, Pause::from(self.turn)));
    }

    /// Holds a topic that is not there any more, until somebody is asked, which is at once.
    pub(super) fn lose(&mut self, name: &Arc<str>) {
        self.refuse(name, "the topic does not exist any more".to_owned());
        if let Some(Topic::Held(hold, _)) = self.topics.get_mut(name) {
            (hold.is_refused, hold.help) = (false, Help::Create);
        }
        self.questions.urgent.push(name.clone());
    }

    /// Takes what was found out about a topic; `true` when rows that waited for it can go out.
    pub(super) fn learn(&mut self, name: &Arc<str>, state: &TopicState) -> bool {
        let (reason, help) = match state {
            TopicState::Available { .. } => return self.is_written_again(name),
            TopicState::Unknown => ("the topic does not exist".to_owned(), Help::Create),
            TopicState::NotCreated(words) => {
                let reason = "the topic does not exist, and the brokers do not create it";
                (format!("{reason}: {words}"), Help::AsBrokersSay)
            }
            TopicState::Denied => {
                let reason = "the topic may not be described or written";
                (reason.to_owned(), Help::Allow)
            }
            TopicState::Leaderless => ("the partition has no leader".to_owned(), Help::Unknown),
        };
        match self.topics.get_mut(name) {
            Some(Topic::Held(hold, _)) if !hold.is_refused => {
                (hold.reason, hold.help) = (reason, help);
            }
            Some(Topic::Held(..) | Topic::Missing) => {}
            Some(Topic::Returning) => self.miss(name),
            Some(Topic::Asked {
                is_among_others: true,
                ..
            }) => self.miss(name),
            Some(Topic::Asked { .. } | Topic::Available) | None => {
                if TopicPartition::parse(name).is_none() && !self.holds_by_name() {
                    self.miss(name);
                    return self.may_release();
                }
                let hold = TopicHold {
                    reason,
                    is_refused: false,
                    help,
                    rows: 0,
                };
                self.set(name, Topic::Held(hold, Pause::from(self.turn)));
            }
        }
        self.may_release()
    }

    fn is_written_again(&mut self, name: &Arc<str>) -> bool {
        let mut has_rows = false;
        let mut topic = Topic::Available;
        match self.topics.get(name) {
            Some(Topic::Held(hold, _)) => has_rows = hold.rows > 0,
            Some(
                Topic::Asked {
                    is_among_others: true,
                    ..
                }
                | Topic::Missing
                | Topic::Returning,
            ) => {
                if let Some(Topic::Asked { is_urgent, .. }) = self.topics.get(name) {
                    self.others.is_urgent |= *is_urgent;
                }
                if !self.has_room_behind() {
                    topic = Topic::Returning;
                }
                self.others_are_due();
            }
            Some(Topic::Asked { .. } | Topic::Available) | None => {}
        }
        self.set(name, topic);
        has_rows || self.may_release()
    }

    fn miss(&mut self, name: &Arc<str>) {
        if self.missing == 0 {
            self.others.asking = Pause::from(self.turn);
        }
        self.set(name, Topic::Missing);
    }

    /// So many topics that can't be written are single ones; more are held together.
    fn holds_by_name(&self) -> bool {
        let known = self.topics.len() - self.asked - self.missing;
        self.by_name < BY_NAME_MIN
            || (self.by_name < BY_NAME_MAX && (self.by_name as f64) < self.share * known as f64)
    }

    /// What is held among others is to be looked at again, not too often, and not before its topics are known.
    fn may_release(&self) -> bool {
        let Some(since) = self.others.due_since else {
            return false;
        };
        let is_early = |at: u64| self.turn < at + RELEASE_EVERY;
        let is_settled = self.asked == 0 || self.others.is_urgent || !is_early(since);
        is_settled && !self.others.released_at.is_some_and(is_early)
    }

    /// The names behind which rows may be released.
    pub(super) fn to_release(&self) -> impl Iterator<Item = &Arc<str>> {
        let others = self.others.due_since.map(|_| &*OTHERS);
        self.available().chain(others)
    }

    /// A turn has passed: held topics are asked for again, less and less often; `true` when rows that are held among
    /// others are to be looked at again.
    pub(super) fn pass_turn(&mut self) -> bool {
        self.turn += 1;
        let turn = self.turn;
        let others_are_asked =
            self.missing > 0 && self.others.asking.is_over(turn, PAUSE_AMONG_OTHERS_MAX);
        for (name, topic) in &mut self.topics {
            let is_due = match topic {
                // Only a record shows whether it is still refused: it is tried when all are asked for.
                Topic::Held(hold, _) if hold.is_refused || **name == **OTHERS => false,
                // A partition's leader comes back within seconds.
                Topic::Held(..) if TopicPartition::parse(name).is_some() => true,
                Topic::Held(_, pause) => pause.is_over(turn, PAUSE_MAX),
                Topic::Missing => others_are_asked,
                Topic::Asked { .. } | Topic::Available | Topic::Returning => false,
            };
            if is_due {
                self.questions.usual.push(name.clone());
            }
        }
        if turn.is_multiple_of(ALL_EVERY) {
            self.ask_for_all();
        }
        if self.others.are_forgotten && self.others.looking.is_over(turn, PAUSE_FORGOTTEN_MAX) {
            self.others_are_due();
        }
        self.may_release()
    }

    /// Every topic that can be written is asked for its partitions, every one that refused records is tried again.
    pub(super) fn ask_for_all(&mut self) {
        for (name, topic) in &self.topics {
            match topic {
                Topic::Available if TopicPartition::parse(name).is_none() => {
                    self.questions.watched.push(name.clone());
                }
                Topic::Held(hold, _) if hold.is_refused => {
                    self.questions.usual.push(name.clone());
                }
                _ => {}
            }
        }
    }

    /// Nobody may have heard the questions that are not answered yet.
    pub(super) fn ask_again(&mut self) {
        let asked = self.topics.iter();
        let asked = asked.filter(|(_, topic)| matches!(topic, Topic::Asked { .. }));
        let asked: Vec<_> = asked.map(|(name, _)| name.clone()).collect();
        self.questions.usual.extend(asked);
    }

    pub(super) fn take_questions(&mut self) -> Questions {
        std::mem::take(&mut self.questions)
    }

    pub(super) fn asked(&self) -> usize {
        self.asked
    }

    pub(super) fn missing(&self) -> usize {
        self.missing
    }

    pub(super) fn is_available(&self, name: &str) -> bool {
        matches!(self.topics.get(name), Some(Topic::Available))
    }

    pub(super) fn available(&self) -> impl Iterator<Item = &Arc<str>> {
        let is_available = |(name, topic)| matches!(topic, &Topic::Available).then_some(name);
        self.topics.iter().filter_map(is_available)
    }

    pub(super) fn hold(&self, name: &str) -> Option<&TopicHold> {
        match self.topics.get(name) {
            Some(Topic::Held(hold, _)) => Some(hold),
            _ => None,
        }
    }

    pub(super) fn holds(&self) -> impl Iterator<Item = (&Arc<str>, &TopicHold)> {
        self.topics.iter().filter_map(|(name, topic)| match topic {
            Topic::Held(hold, _) => Some((name, hold)),
            _ => None,
        })
    }
}
