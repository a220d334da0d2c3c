//! On which processor a thread runs.

use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use std::marker::PhantomData;

/// A processor, by the kernel's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Processor(usize);

/// Keeps the calling thread on one processor, until it is dropped.
#[derive(Debug)]
pub struct Stay {
    processor: Processor,
    /// Those that the thread may run on otherwise.
    allowed: CpuSet,
    of_this_thread: PhantomData<*const ()>,
}

impl Stay {
    /// On the one that the thread runs on. `None` where the kernel does not let us: then it chooses.
    pub fn here() -> Option<Stay> {
        Stay::on(Processor(sched_getcpu()))
    }

    /// On another one; as [`Stay::here`].
    pub fn on(processor: Processor) -> Option<Stay> {
        let allowed = sched_getaffinity(None).ok()?;
        let is_allowed = processor.0 < CpuSet::MAX_CPU && allowed.is_set(processor.0);
        let mut one = CpuSet::new();
        is_allowed.then(|| one.set(processor.0))?;
        sched_setaffinity(None, &one).ok()?;
        Some(Stay { processor, allowed, of_this_thread: PhantomData })
    }

    /// Where it stays.
    pub fn processor(&self) -> Processor {
        self.processor
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        // If all of them have been taken from us meanwhile, the kernel has chosen others.
        let _ = sched_setaffinity(None, &self.allowed);
    }
}

#[cfg(test)]
mod tests {
    use super::{Processor, Stay};
    use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu};

    #[test]
    fn a_thread_stays_on_one_processor_until_it_need_not() {
        let before = sched_getaffinity(None).expect("Linux tells");
        for number in (0..CpuSet::MAX_CPU).filter(|number| before.is_set(*number)) {
            let stay = Stay::on(Processor(number)).expect("it may run there");
            assert_eq!((sched_getcpu(), stay.processor()), (number, Processor(number)));
            assert_eq!(Stay::here().map(|here| here.processor()), Some(Processor(number)));
            assert_eq!(sched_getaffinity(None).map(|allowed| allowed.count()), Ok(1));
        }
        assert_eq!(sched_getaffinity(None), Ok(before));
    }

    #[test]
    fn a_processor_that_is_not_there_is_not_stayed_on() {
        assert!(Stay::on(Processor(CpuSet::MAX_CPU - 1)).is_none());
        assert!(Stay::on(Processor(CpuSet::MAX_CPU)).is_none());
    }
}
