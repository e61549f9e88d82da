//! Asking whether topics exist and may be seen, many by one request, on a thread and a client of their own.
//!
//! Never through the producer's client: its metadata calls would make it switch partition counts. At most two requests
//! a second, however many topics there are.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use rdkafka::client::{Client, ClientContext};
use rdkafka::producer::{BaseProducer, Producer};
use rdkafka::types::RDKafkaErrorCode;
use tokio::sync::mpsc::UnboundedSender;
use tracing::{debug, info};

use super::reports::{Broker, Reports};
use super::{PublisherEvent, TopicPartition, TopicState};
use crate::config::{KafkaConfig, TopicsConfig};
use crate::kafka::native;
use crate::kafka::native::{
    CreationRefusal, Found, Inquiry, Partitions, Reply, Wanted, answering_broker,
};
use crate::kafka::{self, KafkaError};

/// How long one question waits for a broker; Kafka may be 2 s away.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// A question that is not answered by then is told as an outage.
const UNANSWERED_AFTER: Duration = Duration::from_secs(3);
/// How long a new client may take to find a broker: the first attempt, and the longest. Each is twice as long as the one
/// before, for a broker that is far away must be connected and answer within one of them.
const CONNECT: Duration = Duration::from_secs(3);
const CONNECT_MAX: Duration = Duration::from_secs(12);
/// From one request to the next.
const PACE: Duration = Duration::from_millis(500);
/// A look at the questions and at the end while an answer is waited for.
const SLICE: Duration = Duration::from_millis(100);
/// Topics that one request asks for: 2,000 of the longest names are half a megabyte.
const TOPICS_MAX: usize = 2_000;
/// Topics that one request creates.
const CREATED_MAX: usize = 100;
/// The client is closed when nobody has asked for this long.
const IDLE: Duration = Duration::from_secs(10);

/// Topics to ask for.
#[derive(Debug)]
pub(super) enum Question {
    Usual(Vec<Arc<str>>),
    /// Rows wait for them one after another: before all others.
    Urgent(Vec<Arc<str>>),
    /// No row waits for them: none is created.
    Watched(Vec<Arc<str>>),
}

/// Topics that were asked for and not yet answered.
pub(super) struct LookUps {
    kafka: KafkaConfig,
    broker: Broker,
    questions: Receiver<Question>,
    events: UnboundedSender<PublisherEvent>,
    pending: Pending,
    client: Option<Asker>,
    connect: Duration,
    asked_at: Option<Instant>,
}

/// A client and the broker that it asks, once one has answered.
struct Asker {
    client: BaseProducer<Reports>,
    broker: Option<i32>,
}

/// What is to be asked next, each name once.
#[derive(Default)]
struct Pending {
    names: VecDeque<Arc<str>>,
    known: HashSet<Arc<str>>,
    /// Those that are not created, until they are answered.
    watched: HashSet<Arc<str>>,
}

/// What was found out, topic by topic.
type Answers = Vec<(Arc<str>, TopicState)>;

/// Nobody wants answers any more.
struct Gone;

impl Asker {
    /// Serves errors and logs, which would pile up else.
    fn serve(&self) {
        for _ in 0..100 {
            self.client.poll(Duration::ZERO);
        }
    }
}

impl Pending {
    fn take(&mut self, question: Question) {
        match question {
            Question::Usual(names) => {
                self.unwatch(&names);
                self.add(names);
            }
            Question::Watched(names) => {
                let new = names.iter().filter(|name| !self.known.contains(*name));
                self.watched.extend(new.cloned());
                self.add(names);
            }
            Question::Urgent(names) => {
                self.unwatch(&names);
                let urgent: HashSet<&Arc<str>> = names.iter().collect();
                self.names.retain(|name| !urgent.contains(name));
                for name in names.iter().rev() {
                    self.known.insert(name.clone());
                    self.names.push_front(name.clone());
                }
            }
        }
    }

    fn unwatch(&mut self, names: &[Arc<str>]) {
        for name in names {
            self.watched.remove(name);
        }
    }

    /// Adds those that are not there, as whatever they were asked for.
    fn add(&mut self, names: Vec<Arc<str>>) {
        let new = names.into_iter();
        let new = new.filter(|name| self.known.insert(name.clone()));
        self.names.extend(new);
    }

    fn next(&mut self, most: usize) -> Vec<Arc<str>> {
        let names: Vec<_> = self.names.drain(..most.min(self.names.len())).collect();
        for name in &names {
            self.known.remove(name);
        }
        names
    }

    fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

impl LookUps {
    pub(super) fn new(
        kafka: KafkaConfig,
        broker: Broker,
        questions: Receiver<Question>,
        events: UnboundedSender<PublisherEvent>,
    ) -> Self {
        Self {
            kafka,
            broker,
            questions,
            events,
            pending: Pending::default(),
            client: None,
            connect: CONNECT,
            asked_at: None,
        }
    }

    /// Answers until the publisher is dropped.
    pub(super) fn run(mut self) {
        while self.take_questions().is_ok() {
            let names = self.pending.next(TOPICS_MAX);
            if names.is_empty() {
                continue;
            }
            match self.ask(&names) {
                Ok(Some(answers)) if answers.is_empty() => {}
                Ok(Some(answers)) => {
                    // Nobody listens when the relay is gone; the next question finds out.
                    let _ = self.events.send(PublisherEvent::Topics(answers));
                }
                Ok(None) => self.pending.add(names),
                Err(Gone) => return,
            }
        }
    }

    /// Waits for questions, and until the next request may go out.
    fn take_questions(&mut self) -> Result<(), Gone> {
        let pause = match (&self.client, self.pending.is_empty()) {
            (_, false) => self.pace(),
            (Some(_), true) => IDLE,
            // A plain wait: nothing is open that would have to be closed.
            (None, true) => Duration::from_secs(3600),
        };
        self.wait_for_question(pause)?;
        if self.pending.is_empty() {
            self.client = None;
        }
        while !self.pace().is_zero() {
            self.wait_for_question(self.pace())?;
        }
        Ok(())
    }

    /// How long the next request has to wait.
    fn pace(&self) -> Duration {
        let since = self.asked_at.map(|at| at.elapsed());
        since.map_or(Duration::ZERO, |since| PACE.saturating_sub(since))
    }

    fn wait_for_question(&mut self, pause: Duration) -> Result<(), Gone> {
        match self.questions.recv_timeout(pause) {
            Ok(question) => self.pending.take(question),
            Err(RecvTimeoutError::Timeout) => return Ok(()),
            Err(RecvTimeoutError::Disconnected) => return Err(Gone),
        }
        self.take_waiting()
    }

    fn take_waiting(&mut self) -> Result<(), Gone> {
        loop {
            match self.questions.try_recv() {
                Ok(question) => self.pending.take(question),
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(Gone),
            }
        }
    }

    /// Asks for these names; `None` when no broker could say. What a broker is not sure of is asked for again.
    fn ask(&mut self, names: &[Arc<str>]) -> Result<Option<Answers>, Gone> {
        let mut asked: HashMap<Arc<str>, Vec<TopicPartition>> = HashMap::new();
        let mut plain = HashSet::new();
        for name in names {
            match TopicPartition::parse(name) {
                Some(place) => asked.entry(place.topic.clone()).or_default().push(place),
                None => {
                    asked.entry(name.clone()).or_default();
                    plain.insert(name.clone());
                }
            }
        }
        let topics: Vec<_> = asked.keys().cloned().collect();
        let describe = |asker: &Asker| {
            let client = asker.client.client();
            Inquiry::describe(client, asker.broker?, &topics, ANSWER_MAX)
        };
        let Some(Reply::Found(found)) = self.reply_to(describe)? else {
            return Ok(None);
        };
        self.broker.answered();
        let mut answers = Vec::with_capacity(names.len());
        let (mut missing, mut unsure) = (Vec::new(), Vec::new());
        for Found { topic, partitions } in found {
            let Some((topic, places)) = asked.get_key_value(topic.as_str()) else {
                continue;
            };
            let of_topic = plain.get(topic).cloned();
            let names = || {
                let places = places.iter().map(|place| place.name().clone());
                of_topic.iter().cloned().chain(places)
            };
            match partitions {
                Ok(found) if found.count == 0 => unsure.extend(names()),
                Ok(found) => answer(&mut answers, of_topic.as_ref(), places, &found),
                Err(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::InvalidTopic) => {
                    missing.extend(names())
                }
                Err(RDKafkaErrorCode::TopicAuthorizationFailed) => {
                    answers.extend(names().map(|name| (name, TopicState::Denied)));
                }
                Err(code) => {
                    debug!(%topic, %code, "no broker is sure of the topic");
                    unsure.extend(names());
                }
            }
        }
        let (created, unknown): (Vec<_>, Vec<_>) = missing
            .into_iter()
            .partition(|name| self.kafka.topics.create && !self.pending.watched.contains(name));
        answers.extend(unknown.into_iter().map(|name| (name, TopicState::Unknown)));
        self.create(created, &mut answers)?;
        self.pending.add(unsure);
        let answered: Vec<_> = answers.iter().map(|(name, _)| name.clone()).collect();
        self.pending.unwatch(&answered);
        Ok(Some(answers))
    }

    /// Sends one request and waits for its reply; `None` when no broker could say.
    fn reply_to(
        &mut self,
        question: impl FnOnce(&Asker) -> Option<Inquiry>,
    ) -> Result<Option<Reply>, Gone> {
        self.asked_at = Some(Instant::now());
        let Some(asker) = self.open() else {
            return Ok(None);
        };
        let Some(inquiry) = question(&asker) else {
            return Ok(None);
        };
        let began_at = Instant::now();
        let mut is_told = false;
        let reply = loop {
            let reply = inquiry.wait(SLICE);
            asker.serve();
            if reply.is_some() || began_at.elapsed() >= 2 * ANSWER_MAX {
                break reply;
            }
            self.take_waiting()?;
            if !is_told && began_at.elapsed() >= UNANSWERED_AFTER {
                is_told = true;
                self.unanswered(None);
            }
        };
        drop(inquiry);
        match reply {
            Some(Reply::Failed(code)) => {
                self.unanswered(Some(code));
                Ok(None)
            }
            Some(reply) => {
                self.client = Some(asker);
                Ok(Some(reply))
            }
            None => Ok(None),
        }
    }

    fn unanswered(&self, code: Option<RDKafkaErrorCode>) {
        debug!(?code, "no broker answered");
        let text = code.map(|code| code.to_string());
        // The connection's own error, where there is one, says more.
        let text = text.as_deref().unwrap_or("no broker answered");
        self.broker
            .failed(Some(RDKafkaErrorCode::AllBrokersDown), text);
    }

    /// The client that is open, or a new one, once a broker has answered it; the caller keeps it when it was answered.
    fn open(&mut self) -> Option<Asker> {
        let mut asker = match self.client.take() {
            Some(asker) => asker,
            None => match self.connect() {
                Ok(client) => Asker {
                    client,
                    broker: None,
                },
                Err(error) => {
                    self.broker.failed(None, &error.to_string());
                    return None;
                }
            },
        };
        if asker.broker.is_some() {
            return Some(asker);
        }
        let answer = answering_broker(asker.client.client(), self.connect);
        asker.serve();
        match answer {
            Ok(broker) => {
                self.connect = CONNECT;
                asker.broker = Some(broker);
                Some(asker)
            }
            Err(code) => {
                self.unanswered(Some(code));
                // It may know no broker any more, as `bootstrap.rs` tells.
                native::add_brokers(asker.client.client(), &self.kafka.brokers.join(","));
                if self.connect < CONNECT_MAX {
                    self.connect = CONNECT_MAX.min(self.connect * 2);
                    self.client = Some(asker);
                }
                None
            }
        }
    }

    fn connect(&self) -> Result<BaseProducer<Reports>, KafkaError> {
        let config = kafka::look_up_config(&self.kafka)?;
        let context = Reports::new(self.broker.clone());
        Ok(config.create_with_context(context)?)
    }

    /// Creates topics, and asks for them again: metadata follows a moment later.
    fn create(&mut self, names: Vec<Arc<str>>, answers: &mut Answers) -> Result<(), Gone> {
        let (places, mut names): (Vec<_>, Vec<_>) = names
            .into_iter()
            .partition(|name| TopicPartition::parse(name).is_some());
        answers.extend(places.into_iter().map(|name| (name, TopicState::Unknown)));
        let later = names.split_off(CREATED_MAX.min(names.len()));
        if !names.is_empty() {
            let settings = &self.kafka.topics;
            let wanted = Wanted {
                topics: &names,
                partitions: settings.partitions,
                replication_factor: settings.replication_factor,
                is_trial: false,
            };
            let create =
                |asker: &Asker| Inquiry::create(asker.client.client(), &wanted, ANSWER_MAX);
            match self.reply_to(create)? {
                Some(Reply::Created(refusals)) => self.take_created(&names, refusals, answers),
                _ => debug!("nobody answered the request to create topics"),
            }
        }
        let answered: HashSet<_> = answers.iter().map(|(name, _)| name.clone()).collect();
        names.retain(|name| !answered.contains(name));
        names.extend(later);
        self.pending.add(names);
        Ok(())
    }

    fn take_created(
        &self,
        names: &[Arc<str>],
        refusals: Vec<CreationRefusal>,
        answers: &mut Answers,
    ) {
        let mut refused = HashSet::new();
        for refusal in refusals {
            let Some(name) = names.iter().find(|name| ***name == *refusal.topic) else {
                continue;
            };
            refused.insert(name.clone());
            if refusal.code != RDKafkaErrorCode::TopicAlreadyExists {
                answers.push((name.clone(), TopicState::NotCreated(refusal.text())));
            }
        }
        for topic in names.iter().filter(|name| !refused.contains(*name)) {
            info!(%topic, "topic created");
        }
    }
}

/// Of these topics those that the brokers would not create, with their words; nothing is created.
///
/// `None` when no broker said in time. Blocks.
pub(crate) fn refused_creations<C: ClientContext>(
    client: &Client<C>,
    settings: &TopicsConfig,
    topics: &[Arc<str>],
) -> Option<Vec<(String, String)>> {
    let wanted = Wanted {
        topics,
        partitions: settings.partitions,
        replication_factor: settings.replication_factor,
        is_trial: true,
    };
    match Inquiry::create(client, &wanted, ANSWER_MAX)?.wait(ANSWER_MAX)? {
        Reply::Created(refusals) => {
            let refused = |refusal: &CreationRefusal| (refusal.topic.clone(), refusal.text());
            Some(refusals.iter().map(refused).collect())
        }
        Reply::Found(_) | Reply::Failed(_) => None,
    }
}

/// What a topic's partitions say of it, and of the places in it that were asked for: partitions without a leader first.
fn answer(
    answers: &mut Answers,
    topic: Option<&Arc<str>>,
    places: &[TopicPartition],
    found: &Partitions,
) {
    let available = || TopicState::Available {
        partitions: found.count,
    };
    for place in places {
        let state = match found.leaderless.contains(&place.partition) {
            true => TopicState::Leaderless,
            false => available(),
        };
        answers.push((place.name().clone(), state));
    }
    let Some(topic) = topic else {
        return;
    };
    let count = u32::try_from(found.count).unwrap_or(u32::MAX);
    for partition in &found.leaderless {
        let place = TopicPartition::new(topic, *partition, count);
        answers.push((place.name().clone(), TopicState::Leaderless));
    }
    answers.push((topic.clone(), available()));
}
