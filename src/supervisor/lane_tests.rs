use super::*;
use std::sync::mpsc;

const LIMIT: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "current_thread")]
async fn work_is_done_in_its_order_and_the_thread_ends() {
    let lane = Lane::new("test");
    let (sender, receiver) = mpsc::channel();
    let jobs: Vec<_> = (0..100)
        .map(|number| {
            let sender = sender.clone();
            lane.run(move || sender.send(number).unwrap())
        })
        .collect();
    for job in jobs {
        timeout(LIMIT, job).await.unwrap().unwrap();
    }
    assert!(receiver.try_iter().eq(0..100));
    let until = Instant::now() + LIMIT;
    while lane.0.lock().has_thread {
        assert!(Instant::now() < until, "the thread stays");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(lane.run(|| 7).await.unwrap(), 7);
}

#[tokio::test(flavor = "current_thread")]
async fn what_does_not_answer_is_given_up_and_what_waits_behind_it_is_not_begun() {
    let lane = Lane::new("test");
    let (release, blocked) = mpsc::channel::<()>();
    let (begun, begins) = mpsc::channel();
    let stuck = lane.run_within(Duration::from_millis(1_200), "/mnt".into(), move || {
        begun.send(()).unwrap();
        blocked.recv()
    });
    // From then on its time counts.
    begins.recv_timeout(LIMIT).unwrap();
    let (sender, receiver) = mpsc::channel();
    let behind = lane.run_within(Duration::from_millis(10), "/mnt".into(), move || sender.send(()));
    assert_eq!(behind.await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    let error = stuck.await.unwrap_err().to_string();
    assert_eq!(error, "/mnt has not answered for 1 s");
    let error = lane.run(|| ()).await.unwrap_err().to_string();
    assert!(error.contains("an earlier access has not ended for "), "{error}");
    release.send(()).unwrap();
    let until = Instant::now() + LIMIT;
    while lane.run(|| ()).await.is_err() {
        assert!(Instant::now() < until, "it answers again");
    }
    assert_eq!(receiver.try_recv(), Err(mpsc::TryRecvError::Disconnected), "it was given up before its turn");
}

#[tokio::test(flavor = "current_thread")]
async fn who_would_wait_here_is_refused_behind_work_that_hangs_and_was_not_given_up() {
    let lane = Lane::new("test");
    let (release, blocked) = mpsc::channel::<()>();
    let (begun, begins) = mpsc::channel();
    let hangs = lane.run(move || {
        begun.send(()).unwrap();
        blocked.recv()
    });
    begins.recv_timeout(LIMIT).unwrap();
    let began = Instant::now();
    let error = lane.wait(STUCK + Duration::from_millis(200), "/mnt", || ()).unwrap_err().to_string();
    assert_eq!(error, "/mnt has not answered for 1 s");
    assert!(began.elapsed() >= STUCK);
    for _ in 0..20 {
        let error = lane.wait(LIMIT, "/mnt", || ()).unwrap_err().to_string();
        assert!(error.contains("an earlier access has not ended for "), "{error}");
    }
    assert!(began.elapsed() < LIMIT, "each was waited for: {:?}", began.elapsed());
    // A caller that does not block here is not refused: the work may be long, and still end.
    let later = lane.run(|| 7);
    release.send(()).unwrap();
    hangs.await.unwrap().unwrap();
    assert_eq!(later.await.unwrap(), 7);
    assert_eq!(lane.wait(LIMIT, "/mnt", || 8).unwrap(), 8);
}

#[tokio::test(flavor = "current_thread")]
async fn work_that_was_long_and_has_ended_is_in_the_way_of_none() {
    let lane = Lane::new("test");
    let looks = lane.clone();
    // Checked when the thread delivers the result: it is not at the work any more.
    let (sender, told) = mpsc::channel();
    let work = move || -> Completion {
        std::thread::sleep(STUCK + Duration::from_millis(100));
        Box::new(move || sender.send(looks.0.lock().stuck_since(true)).unwrap())
    };
    let began = Instant::now();
    lane.push(Job { work: Box::new(work), given_up: Arc::default() }).unwrap();
    assert_eq!(told.recv_timeout(LIMIT), Ok(None));
    assert!(began.elapsed() > STUCK);
    assert_eq!(lane.wait(LIMIT, "/mnt", || 7).unwrap(), 7);
}

#[tokio::test(flavor = "current_thread")]
async fn a_lane_takes_no_more_than_so_much() {
    let lane = Lane::new("test");
    let (release, blocked) = mpsc::channel::<()>();
    let (begun, begins) = mpsc::channel();
    let hangs = lane.run(move || {
        begun.send(()).unwrap();
        blocked.recv()
    });
    begins.recv_timeout(LIMIT).unwrap();
    // Work that was given up makes room.
    for _ in 0..3 * WAITING_MAX {
        drop(lane.run(|| ()));
    }
    for _ in 0..WAITING_MAX {
        lane.post(|| ());
    }
    let error = lane.run(|| ()).await.unwrap_err().to_string();
    assert!(error.contains("too much waits"), "{error}");
    assert_eq!(lane.0.lock().jobs.len(), WAITING_MAX);
    release.send(()).unwrap();
    hangs.await.unwrap().unwrap();
    let until = Instant::now() + LIMIT;
    while lane.run(|| ()).await.is_err() {
        assert!(Instant::now() < until, "it takes work again");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_thread_that_is_held_stays() {
    let lane = Lane::new("test");
    let hold = lane.hold().unwrap();
    assert!(lane.0.lock().has_thread);
    tokio::time::sleep(IDLE + Duration::from_millis(300)).await;
    assert!(lane.0.lock().has_thread);
    drop(hold);
    let until = Instant::now() + LIMIT;
    while lane.0.lock().has_thread {
        assert!(Instant::now() < until, "the thread stays");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
